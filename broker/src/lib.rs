//! The brokers of Outlast behind one seam, whose guarantees stand in its documentation: they carry, the store remembers.

mod owner;
mod seam;

pub mod in_process;
pub mod jetstream;

pub use seam::{
    Broker, BrokerState, Control, Delivery, Dispatch, Error, Question, Report, ReportReply, ReportResult, Settle,
    ShardMessage, ShardNotice, ShardRequest, StatusUpdate, StatusWatch, Trouble, Withdrawal, WorkSource, WorkerProfile,
};
