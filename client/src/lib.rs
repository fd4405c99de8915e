//! Start, signal, query, cancel, wait for and manage durable orchestrations, from any process that reaches the store.

mod client;
mod error;
mod first_input;
mod insist;
mod just_started;
mod manage;
mod options;
mod provider;
mod query;
mod signal;
mod surroundings;
#[cfg(feature = "telemetry")]
pub mod trace;
mod wait;

pub use client::Client;
pub use error::{ClientError, ProviderError};
pub use options::{ClientOptions, StartOptions};
pub use outlast_storage::{
    DeleteInstanceResult, ExecutionInfo, InstanceFilter, InstanceInfo, InstanceTree, ListedStatus, PruneOptions,
    PruneResult, QueueDepths, StartConflict, StartOutcome, SystemMetrics, SystemStats,
};
pub use provider::{Provider, ProviderRef, carry_arrivals};
pub use query::Problem;
pub use surroundings::{Simulated, Step, Surroundings};
