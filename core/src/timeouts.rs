//! How long an activity may take, per call.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Deadlines of an activity; none by default. An activity that misses one ends with an error that begins with `timeout:`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityTimeouts {
    /// Milliseconds from being scheduled until a worker has started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) schedule_to_start_ms: Option<u64>,
    /// Milliseconds from its start to its end, per attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) start_to_close_ms: Option<u64>,
    /// Milliseconds between two heartbeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) heartbeat_ms: Option<u64>,
}

impl ActivityTimeouts {
    /// No deadlines.
    pub fn new() -> Self {
        Self::default()
    }

    /// Some worker has to start it within `limit` of its scheduling.
    #[must_use]
    pub fn schedule_to_start(mut self, limit: Duration) -> Self {
        self.schedule_to_start_ms = Some(millis(limit));
        self
    }

    /// An attempt has to end within `limit` of its start.
    #[must_use]
    pub fn start_to_close(mut self, limit: Duration) -> Self {
        self.start_to_close_ms = Some(millis(limit));
        self
    }

    /// The code has to call `heartbeat` at least this often.
    #[must_use]
    pub fn heartbeat(mut self, limit: Duration) -> Self {
        self.heartbeat_ms = Some(millis(limit));
        self
    }

    /// By when a worker has to have started it.
    pub fn get_schedule_to_start(&self) -> Option<Duration> {
        self.schedule_to_start_ms.map(Duration::from_millis)
    }

    /// By when an attempt has to have ended.
    pub fn get_start_to_close(&self) -> Option<Duration> {
        self.start_to_close_ms.map(Duration::from_millis)
    }

    /// Longest time between heartbeats.
    pub fn get_heartbeat(&self) -> Option<Duration> {
        self.heartbeat_ms.map(Duration::from_millis)
    }

    /// These, and where they say nothing, `defaults`.
    #[must_use]
    pub fn or(self, defaults: Self) -> Self {
        Self {
            schedule_to_start_ms: self.schedule_to_start_ms.or(defaults.schedule_to_start_ms),
            start_to_close_ms: self.start_to_close_ms.or(defaults.start_to_close_ms),
            heartbeat_ms: self.heartbeat_ms.or(defaults.heartbeat_ms),
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

fn millis(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
}
