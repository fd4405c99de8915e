//! The brokers of Outlast behind one seam, whose guarantees stand in its documentation: they carry, the store remembers.

mod seam;

pub mod in_process;
pub mod jetstream;

pub use seam::{
    Broker, Control, Delivery, Dispatch, Error, Question, Report, ReportReply, ReportResult, Settle, ShardMessage,
    StatusUpdate, StatusWatch, Trouble, WorkSource, WorkerProfile,
};
