//! Durable orchestrations in plain async Rust, embedded in your service.
//!
//! An orchestration is a deterministic async function; its progress is a history in a store, and it goes on from there
//! after any crash. Activities do the real work, on any worker. Start with the README and `docs/guide.md`.

mod options;
pub mod runtime;

mod node;

mod shards;

mod instances;

mod dispatch;

mod code;
mod worker;

mod problems;
pub mod telemetry;

pub mod client;
pub mod providers;
pub mod testing;

/// Compiles and runs the samples of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guide.md")]
struct Guide;

/// Compiles the first program of the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

pub use code::activity::{ActivityHandler, ActivityRegistry, ActivityRegistryBuilder};
pub use code::context::ActivityContext;
pub use node::readiness::NotReady;
pub use options::RuntimeOptions;
pub use runtime::{OrchestrationDescriptor, Runtime, StartError};
pub use telemetry::logging as observability;
pub use telemetry::logging::{LogFormat, ObservabilityConfig};

pub use outlast_client::*;
pub use outlast_core::{
    ActivityTimeouts, AppErrorKind, AttemptInfo, BackoffStrategy, ConfigErrorKind, ContinueAsNew, DurableFuture,
    Either2, Either3, ErrorDetails, Event, EventKind, INITIAL_EVENT_ID, INITIAL_EXECUTION_ID, KvEntry, LimitExceeded,
    Limits, LogLevel, MAX_KV_KEYS, MAX_KV_VALUE_BYTES, OrchestrationContext, OrchestrationHandler,
    OrchestrationHandlerRef, OrchestrationRegistry, OrchestrationRegistryBuilder, OrchestrationStatus, Reason,
    RefusedOption, Registry, RegistryBuilder, RegistryError, RegistryErrors, ReplayDifference, RetryPolicy,
    SUB_ORCH_AUTO_PREFIX, TagFilter, UnregisteredBackoffConfig, VersionPolicy, build_child_instance_id,
    is_auto_generated_sub_orch_id,
};
