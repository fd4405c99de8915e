//! The pure part of Outlast: events, the orchestration context and its durable futures, replay, and the decision of a turn.
//!
//! Nothing in this crate waits, reads a clock, draws a random number or knows a store or a broker. A turn is a function
//! of history, new messages, the store's time and 64 random bits; what it wants done outside is returned as data.

mod code_limits;
mod ids;
mod limits;
mod reason;
mod refused_option;

mod either;
mod error;
mod event;
mod log;
mod message;
mod panics;
mod registry;
mod retry;
mod rules;
mod status;
mod stored_form;
mod tag;
mod typed_values;

mod combine;
mod completion_order;
mod context;
mod context_children;
mod context_kv;
mod durable_future;
mod journal;

mod command;
mod draft;
mod ending;
mod first_event;
mod fork;
mod heartbeats;
mod instance;
mod outstanding;
mod replay;
mod replay_check;
mod timeouts;
mod turn;

pub use code_limits::CodeLimits;
pub use context::{ContinueAsNew, OrchestrationContext};
pub use context_children::{SUB_ORCH_AUTO_PREFIX, build_child_instance_id, is_auto_generated_sub_orch_id};
pub use durable_future::DurableFuture;
pub use either::{Either2, Either3};
pub use error::{AppErrorKind, ConfigErrorKind, ErrorDetails};
pub(crate) use event::KV_READ_ACTIVITY;
pub use event::{AttemptInfo, Carried, Event, EventKind, ForkPoint, HistoryEvent, KvEntry};
pub use fork::{Fork, ForkError, ForkOrigin, fork_history};
pub use ids::{
    ActivityKey, ActivityRef, Epoch, EventId, ExecutionId, INITIAL_EVENT_ID, INITIAL_EXECUTION_ID, InboxSeq,
    InstanceId, MessageId, Millis, NodeId, ShardId, Token, WorkerId,
};
pub use instance::{Decision, Snapshot, TurnInput, WarmInstance};
pub use limits::{
    LOAD_BYTES_MAX, LimitExceeded, Limits, MAX_CUSTOM_STATUS_BYTES, MAX_KV_KEYS, MAX_KV_VALUE_BYTES, NAME_BYTES_MAX,
    QUEUE_MESSAGES_MAX, TURN_MESSAGE_BYTES_MAX,
};
pub use log::{LogLevel, LogLine};
pub use message::{ActivityOutcome, Incoming, Message, MessageKind, ParentLink, StartMessage, StartSnapshot};
pub use panics::panic_text;
pub use reason::Reason;
pub use refused_option::RefusedOption;
pub use registry::{
    Handlers, OrchestrationHandler, OrchestrationHandlerRef, OrchestrationRegistry, OrchestrationRegistryBuilder,
    Registry, RegistryBuilder, RegistryError, RegistryErrors, VersionPolicy,
};
pub use replay::OutsideWake;
pub use replay_check::{ReplayDifference, check_replay};
pub use retry::{BackoffStrategy, RetryPolicy, UnregisteredBackoffConfig};
pub use rules::Rules;
pub use status::{InstanceState, InstanceStatus, OrchestrationStatus};
pub use stored_form::{DecodeError, decode, encode};
pub use tag::{MAX_WORKER_TAGS, TagFilter};
pub use timeouts::ActivityTimeouts;
pub use turn::{ActivityItem, Effect, Expected, KvChange, KvRead, OutboundMessage, Turn, Verdict};
pub use typed_values::{read_typed, write_typed};
