//! What can go wrong with a call, by what the caller can do about it.

use outlast_core::{ErrorDetails, LimitExceeded, Reason};
use outlast_storage::Error;
use thiserror::Error;

/// The operation in a [`ProviderError`] that comes from the store.
const STORE: &str = "call the store";

/// A store or broker that failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("failed to {operation}: {message}")]
pub struct ProviderError {
    /// What was being done.
    pub operation: String,
    /// Its error message.
    pub message: String,
    /// Whether the same may succeed later.
    pub retryable: bool,
    #[source]
    source: Option<Reason>,
}

impl ProviderError {
    /// An error that a retry may cure.
    pub fn retryable(operation: impl Into<String>, message: impl Into<String>) -> Self {
        Self { operation: operation.into(), message: message.into(), retryable: true, source: None }
    }

    /// An error that no retry cures.
    pub fn permanent(operation: impl Into<String>, message: impl Into<String>) -> Self {
        Self { retryable: false, ..Self::retryable(operation, message) }
    }

    fn caused_by(self, reason: Reason) -> Self {
        Self { source: Some(reason), ..self }
    }

    /// Whether the same may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// As a failure of an orchestration.
    pub fn to_infrastructure_error(&self) -> ErrorDetails {
        let (operation, message) = (self.operation.clone(), self.message.clone());
        ErrorDetails::Infrastructure { operation, message, retryable: self.retryable }
    }
}

/// Failures of client calls.
#[derive(Clone, Debug, Error)]
pub enum ClientError {
    /// The store or broker failed.
    #[error("provider failed: {}", .0.message)]
    Provider(#[from] ProviderError),
    /// This provider, or this role, cannot manage instances.
    #[error("management is not available with this provider or role")]
    ManagementNotAvailable,
    /// The call was refused because of its arguments.
    #[error("invalid input: {message}")]
    InvalidInput {
        /// What to change.
        message: String,
    },
    /// The wait ended before the awaited change.
    #[error("timed out; the instance goes on, wait again or look at its status")]
    Timeout,
    /// The instance has not ended.
    #[error("instance {instance_id} is still running: cancel it and wait, or force")]
    InstanceStillRunning {
        /// Which.
        instance_id: String,
    },
    /// The instance belongs to a parent.
    #[error("instance {instance_id} is a child: delete the root of its tree")]
    CannotDeleteSubOrchestration {
        /// Which.
        instance_id: String,
    },
    /// There is no such instance.
    #[error("there is no instance {instance_id}: start it first, or check its id")]
    InstanceNotFound {
        /// Which.
        instance_id: String,
    },
    /// The instance is there, the execution is not.
    #[error(
        "instance {instance_id} has no execution {execution_id}, or its history was pruned: list_executions tells which it has"
    )]
    ExecutionNotFound {
        /// The instance.
        instance_id: String,
        /// The execution that it does not have.
        execution_id: u64,
    },
    /// The id is taken.
    #[error("instance {instance_id} exists and runs orchestration {orchestration}: choose another id")]
    InstanceExists {
        /// Which.
        instance_id: String,
        /// What runs under it.
        orchestration: String,
    },
    /// The queue has reached its limit; nothing was dropped.
    #[error("{message}")]
    QueueFull {
        /// Which queue, and its limit.
        message: String,
    },
    /// The role used with the store has no right to this.
    #[error("{message}")]
    Forbidden {
        /// What the store said.
        message: String,
    },
    /// The orchestration that a typed wait was waiting for has failed.
    #[error("orchestration failed: {}", details.display_message())]
    OrchestrationFailed {
        /// Why.
        details: ErrorDetails,
    },
}

impl ClientError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Provider(error) => error.is_retryable(),
            Self::Timeout | Self::QueueFull { .. } => true,
            Self::ManagementNotAvailable
            | Self::Forbidden { .. }
            | Self::InvalidInput { .. }
            | Self::InstanceStillRunning { .. }
            | Self::CannotDeleteSubOrchestration { .. }
            | Self::InstanceNotFound { .. }
            | Self::ExecutionNotFound { .. }
            | Self::InstanceExists { .. }
            | Self::OrchestrationFailed { .. } => false,
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::InvalidInput { message: message.into() }
    }
}

impl From<LimitExceeded> for ClientError {
    fn from(refused: LimitExceeded) -> Self {
        Self::invalid(refused.to_string())
    }
}

impl From<Error> for ClientError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Unavailable(reason) => ProviderError::retryable(STORE, message).caused_by(reason).into(),
            Error::Forbidden(_) => Self::Forbidden { message },
            Error::Unusable(reason) => ProviderError::permanent(STORE, message).caused_by(reason).into(),
            Error::Corrupt { .. } => ProviderError::permanent(STORE, message).into(),
            Error::InstanceNotFound(id) => Self::InstanceNotFound { instance_id: id.to_string() },
            Error::InstanceExists { instance, orchestration } => {
                Self::InstanceExists { instance_id: instance.to_string(), orchestration }
            }
            Error::InstanceStillRunning(id) => Self::InstanceStillRunning { instance_id: id.to_string() },
            Error::CannotDeleteSubOrchestration(id) => {
                Self::CannotDeleteSubOrchestration { instance_id: id.to_string() }
            }
            Error::QueueFull { .. } => Self::QueueFull { message },
        }
    }
}
