//! Where an instance stands.

use crate::{ErrorDetails, EventId, ExecutionId, Millis};

/// The state of an instance as clients see it.
#[derive(Clone, Debug, PartialEq)]
pub enum OrchestrationStatus {
    /// There is no such instance.
    NotFound,
    /// Not ended yet.
    Running {
        /// As last set by the code.
        custom_status: Option<String>,
        /// Rises with every change of the custom status.
        custom_status_version: u64,
    },
    /// Ended with `Ok`.
    Completed {
        /// What the code returned.
        output: String,
        /// As last set by the code.
        custom_status: Option<String>,
        /// Rises with every change of the custom status.
        custom_status_version: u64,
    },
    /// Ended with an error, cancelled, or failed by the system.
    Failed {
        /// Why.
        details: ErrorDetails,
        /// As last set by the code.
        custom_status: Option<String>,
        /// Rises with every change of the custom status.
        custom_status_version: u64,
    },
}

impl OrchestrationStatus {
    /// Whether the instance has ended.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Completed { .. } | Self::Failed { .. })
    }
}

/// The coarse state of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InstanceStatus {
    /// Not ended yet.
    #[default]
    Running,
    /// Ended with `Ok`.
    Completed,
    /// Ended with an error.
    Failed,
}

impl InstanceStatus {
    /// The word used in lists and filters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
        }
    }

    /// The status with this word; letter case does not matter.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Running, Self::Completed, Self::Failed].into_iter().find(|s| s.as_str().eq_ignore_ascii_case(word))
    }
}

/// The columns of an instance's row that a turn may change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstanceState {
    /// The orchestration's name.
    pub orchestration: String,
    /// The version that the current execution runs; empty before the first turn.
    pub version: String,
    /// Running, completed or failed.
    pub status: InstanceStatus,
    /// Whether turns are stopped.
    pub paused: bool,
    /// The current execution.
    pub execution: ExecutionId,
    /// The last event of the current execution; 0 before the first turn.
    pub last_event_id: EventId,
    /// Bytes of the current execution's history.
    pub history_bytes: u64,
    /// When the instance must be looked at next, if nothing arrives.
    pub wake_at: Option<Millis>,
    /// Activities that are scheduled and have no outcome.
    pub pending: u32,
    /// Why the instance waits, in a few words.
    pub waits: String,
    /// Turns that could not begin, in a row.
    pub stalled: u32,
    /// As last set by the code.
    pub custom_status: Option<String>,
    /// Rises with every change of the custom status.
    pub custom_status_version: u64,
    /// The output when completed; the stored form of the details (JSON) when failed.
    pub output: Option<String>,
    /// When it ended.
    pub completed_at: Option<Millis>,
}

impl InstanceState {
    /// A new instance, before its first turn.
    pub fn begun(orchestration: &str) -> Self {
        Self {
            orchestration: orchestration.to_owned(),
            execution: ExecutionId(crate::INITIAL_EXECUTION_ID),
            ..Self::default()
        }
    }

    /// The view that clients get.
    pub fn to_status(&self) -> OrchestrationStatus {
        let custom_status = self.custom_status.clone();
        let custom_status_version = self.custom_status_version;
        match self.status {
            InstanceStatus::Running => OrchestrationStatus::Running { custom_status, custom_status_version },
            InstanceStatus::Completed => OrchestrationStatus::Completed {
                output: self.output.clone().unwrap_or_default(),
                custom_status,
                custom_status_version,
            },
            InstanceStatus::Failed => {
                OrchestrationStatus::Failed { details: self.failure(), custom_status, custom_status_version }
            }
        }
    }

    /// Why the instance failed.
    fn failure(&self) -> ErrorDetails {
        let text = self.output.as_deref().unwrap_or_default();
        serde_json::from_str(text).unwrap_or_else(|error| ErrorDetails::Infrastructure {
            operation: "read the stored failure".to_owned(),
            message: format!("{error}: {text}"),
            retryable: false,
        })
    }
}
