//! Durable orchestrations in plain async Rust, embedded in your service.
//!
//! An orchestration is a deterministic async function; its progress is a history in a store, and it goes on from there
//! after any crash. Activities do the real work, on any worker. Start with the README and `docs/guide.md`.

mod activity;
mod activity_context;
mod options;

mod attempt;
mod committer;
mod counters;
mod dispatch;
mod execute;
mod heartbeat;
mod hydrate;
mod instance_actor;
mod mailbox;
mod membership;
mod meter;
mod node;
mod notices;
mod outstanding;
mod own_thread;
mod owner;
mod presence;
mod readiness;
mod renewal;
mod run_turn;
mod sessions;
mod shortages;
mod shutdown;
mod spans;
mod supervision;
mod tasks;
mod troubles;
mod wanted;
mod warm;
mod wheel;
mod worker;

pub mod client;
pub mod observability;
pub mod providers;
pub mod runtime;
#[cfg(feature = "telemetry")]
pub mod telemetry;
pub mod testing;

/// Compiles and runs the samples of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guide.md")]
struct Guide;

/// Compiles the first program of the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

pub use activity::{ActivityHandler, ActivityRegistry, ActivityRegistryBuilder};
pub use activity_context::ActivityContext;
pub use observability::{LogFormat, ObservabilityConfig};
pub use options::RuntimeOptions;
pub use readiness::NotReady;
pub use runtime::{OrchestrationDescriptor, Runtime, StartError};

pub use outlast_client::*;
pub use outlast_core::{
    ActivityTimeouts, AppErrorKind, AttemptInfo, BackoffStrategy, ConfigErrorKind, ContinueAsNew, DurableFuture,
    Either2, Either3, ErrorDetails, Event, EventKind, INITIAL_EVENT_ID, INITIAL_EXECUTION_ID, KvEntry, LimitExceeded,
    Limits, LogLevel, MAX_KV_KEYS, MAX_KV_VALUE_BYTES, OrchestrationContext, OrchestrationHandler,
    OrchestrationHandlerRef, OrchestrationRegistry, OrchestrationRegistryBuilder, OrchestrationStatus, RefusedOption,
    Registry, RegistryBuilder, RegistryError, RegistryErrors, ReplayDifference, RetryPolicy, SUB_ORCH_AUTO_PREFIX,
    TagFilter, UnregisteredBackoffConfig, VersionPolicy, build_child_instance_id, is_auto_generated_sub_orch_id,
};
