//! How a client behaves, and how an instance is started.

use std::time::Duration;

use outlast_core::Limits;
use outlast_storage::StartConflict;

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// How long a call tries again while the store is away (default 30 s).
    pub call_timeout: Duration,
    /// How often a wait reads the store, besides pushed updates (default 1 s).
    pub poll_interval: Duration,
    /// Limits that calls are checked against.
    pub limits: Limits,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { call_timeout: Duration::from_secs(30), poll_interval: Duration::from_secs(1), limits: Limits::default() }
    }
}

/// A start with all its options.
#[derive(Clone, Debug, Default)]
pub struct StartOptions {
    /// The instance's id.
    pub instance: String,
    /// The orchestration's name.
    pub orchestration: String,
    /// An exact version; `None` lets the registry's policy choose.
    pub version: Option<String>,
    /// The input.
    pub input: String,
    /// What to do when the id exists with the same orchestration.
    pub on_conflict: StartConflict,
    /// W3C trace context that the instance and its activities belong to.
    pub traceparent: Option<String>,
}
