//! What can go wrong at a store, by what the caller can do about it.

use std::any::Any;

use outlast_core::{InstanceId, Reason, panic_text};
use thiserror::Error;

/// Failures of a store.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The store cannot be reached or cannot write now. Whether the work was done is unknown: read again, then try again.
    #[error("store is unavailable: {0}")]
    Unavailable(#[source] Reason),
    /// Stored data cannot be read.
    #[error("stored data of {instance} is damaged: {reason}")]
    Corrupt {
        /// Whose data.
        instance: InstanceId,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such instance.
    #[error("there is no instance {0}: start it first, or check its id")]
    InstanceNotFound(InstanceId),
    /// The id is taken by another orchestration.
    #[error("instance {instance} exists and runs orchestration {orchestration}: choose another id")]
    InstanceExists {
        /// The id.
        instance: InstanceId,
        /// What runs under it.
        orchestration: String,
    },
    /// The instance has not ended.
    #[error("instance {0} is still running: cancel it and wait, or force")]
    InstanceStillRunning(InstanceId),
    /// The instance belongs to a parent.
    #[error("instance {0} is a child: delete the root of its tree")]
    CannotDeleteSubOrchestration(InstanceId),
    /// A queue has reached its limit.
    #[error("queue {queue:?} of {instance} holds {max} messages already: wait until the orchestration has taken some")]
    QueueFull {
        /// The receiver.
        instance: InstanceId,
        /// The queue.
        queue: String,
        /// The limit in messages.
        max: usize,
    },
    /// The role that the store is used by has no right to this.
    #[error("the store does not allow this: {0}: use a role that was granted it")]
    Forbidden(#[source] Reason),
    /// The store was opened with something it cannot work with.
    #[error("store cannot be used: {0}")]
    Unusable(#[source] Reason),
}

impl Error {
    /// The store cannot be reached or cannot write now.
    pub fn unavailable(why: impl Into<Reason>) -> Self {
        Self::Unavailable(why.into())
    }

    /// The store was opened with something it cannot work with.
    pub fn unusable(why: impl Into<Reason>) -> Self {
        Self::Unusable(why.into())
    }
}

impl From<outlast_core::RefusedOption> for Error {
    fn from(refused: outlast_core::RefusedOption) -> Self {
        Self::Unusable(Reason::of(refused))
    }
}

/// What a caller is told whose call panicked inside the store; said in the log too.
pub(crate) fn panicked(panic: Box<dyn Any + Send>) -> Error {
    let text = panic_text(panic).unwrap_or_else(|| "without a message".to_owned());
    tracing::error!(target: "outlast::storage", text, "a call panicked inside the store, which goes on");
    Error::unavailable(format!("the call panicked inside the store: {text}: a fault of Outlast, please report it"))
}
