//! What orchestration code logs.

/// Importance of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// For whoever looks for a fault.
    Debug,
    /// Normal progress.
    Info,
    /// Something to look at.
    Warn,
    /// Something failed.
    Error,
}

impl From<&str> for LogLevel {
    /// By name, in any case; what is none of them counts as `info`.
    fn from(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "debug" | "trace" => Self::Debug,
            "warn" | "warning" => Self::Warn,
            "error" => Self::Error,
            _ => Self::Info,
        }
    }
}

impl From<String> for LogLevel {
    /// Like a `&str`.
    fn from(name: String) -> Self {
        Self::from(name.as_str())
    }
}

/// A line that orchestration code logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How important.
    pub level: LogLevel,
    /// The text.
    pub text: String,
}
