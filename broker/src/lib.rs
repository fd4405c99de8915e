//! The brokers of Outlast behind one seam: they carry, the store remembers.
//!
//! Guarantees asked of a broker, and shown by the conformance suite:
//! 1. Work that was published and not acked is delivered again when its puller is dropped or says so.
//! 2. An item is delivered only to a worker whose filter matches its tag, and a session's items only to its owner.
//! 3. Publishing an item that is queued or in flight (same key and token) does nothing.
//! 4. Order from one sender to one shard is kept.
//!
//! A broker may lose everything at any time; whoever uses it must be able to find all facts in the store.

mod seam;

pub mod in_process;
pub mod jetstream;

pub use seam::{
    Broker, Control, Delivery, Dispatch, Error, News, Report, ReportReply, ReportResult, Settle, ShardMail,
    StatusWatch, WorkSource, WorkerProfile,
};
