//! Why an orchestration, activity or child failed.

use serde::{Deserialize, Serialize};

use crate::Limits;

/// Details of a failure, as stored in history and shown to clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorDetails {
    /// The system beneath failed in a way that waiting does not mend.
    Infrastructure {
        /// What was being done.
        operation: String,
        /// What went wrong.
        message: String,
        /// Whether trying again may help.
        retryable: bool,
    },
    /// The deployment is wrong: code and history, or names and registries, do not fit.
    Configuration {
        /// What kind of misfit.
        kind: ConfigErrorKind,
        /// The orchestration concerned.
        resource: String,
        /// Expected and actual.
        message: Option<String>,
    },
    /// The user's own code returned an error, panicked or was cancelled.
    Application {
        /// What kind of failure.
        kind: AppErrorKind,
        /// The user's message.
        message: String,
        /// Whether trying again may help.
        retryable: bool,
    },
    /// Tried too often without getting anywhere.
    Poison {
        /// How often it was tried.
        attempt_count: u32,
        /// How often it may be tried.
        max_attempts: u32,
        /// What it was: an orchestration or an activity, and its name.
        message_type: String,
        /// The last reason.
        message: String,
    },
}

/// Kinds of configuration failures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigErrorKind {
    /// The code does not do what its history says.
    Nondeterminism,
}

/// Kinds of failures of user code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppErrorKind {
    /// An activity returned an error.
    ActivityFailed,
    /// An orchestration returned an error.
    OrchestrationFailed,
    /// User code panicked.
    Panicked,
    /// The instance was cancelled or terminated.
    Cancelled {
        /// As given by who cancelled it.
        reason: String,
    },
}

impl ErrorDetails {
    /// `infrastructure`, `configuration` or `application`; poison counts as infrastructure.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Infrastructure { .. } | Self::Poison { .. } => "infrastructure",
            Self::Configuration { .. } => "configuration",
            Self::Application { .. } => "application",
        }
    }

    /// One line for people.
    pub fn display_message(&self) -> String {
        match self {
            Self::Infrastructure { operation, message, .. } => format!("{operation}: {message}"),
            Self::Configuration { kind: ConfigErrorKind::Nondeterminism, resource, message } => {
                format!("nondeterministic: {}", message.as_deref().unwrap_or(resource))
            }
            Self::Application { kind, message, .. } => match kind {
                AppErrorKind::Cancelled { reason } => format!("canceled: {reason}"),
                AppErrorKind::Panicked => format!("orchestration panicked: {message}"),
                AppErrorKind::ActivityFailed | AppErrorKind::OrchestrationFailed => message.clone(),
            },
            Self::Poison { attempt_count, max_attempts, message_type, message } => {
                format!("poison: {message_type} gave up after {attempt_count} of {max_attempts} attempts: {message}")
            }
        }
    }

    /// Whether trying the same again may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Infrastructure { retryable, .. } | Self::Application { retryable, .. } => *retryable,
            Self::Configuration { .. } | Self::Poison { .. } => false,
        }
    }

    /// The same with texts of at most `error_bytes_max`.
    #[must_use]
    pub(crate) fn within(mut self, limits: &Limits) -> Self {
        match &mut self {
            Self::Infrastructure { message, .. }
            | Self::Application { message, .. }
            | Self::Poison { message, .. }
            | Self::Configuration { message: Some(message), .. } => {
                *message = limits.cut_error(std::mem::take(message));
            }
            Self::Configuration { message: None, .. } => {}
        }
        if let Self::Application { kind: AppErrorKind::Cancelled { reason }, .. } = &mut self {
            *reason = limits.cut_error(std::mem::take(reason));
        }
        self
    }

    /// An error that user code returned.
    pub fn application(kind: AppErrorKind, message: impl Into<String>) -> Self {
        Self::Application { kind, message: message.into(), retryable: false }
    }

    /// Code and history differ.
    pub(crate) fn nondeterminism(resource: &str, message: impl Into<String>) -> Self {
        Self::Configuration {
            kind: ConfigErrorKind::Nondeterminism,
            resource: resource.to_owned(),
            message: Some(message.into()),
        }
    }
}
