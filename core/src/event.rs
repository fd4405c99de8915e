//! Facts in a history.

use serde::{Deserialize, Serialize};

use crate::{
    ActivityTimeouts, CodeLimits, ErrorDetails, EventId, ExecutionId, InstanceId, MessageId, Millis, Rules, Token,
};

/// A fact as stored and as held in memory; instance and execution are known from where it lies.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryEvent {
    /// Position in the history.
    pub event_id: EventId,
    /// The scheduling event that this one is an outcome of.
    pub source_event_id: Option<EventId>,
    /// The message that this event applied.
    pub message_id: Option<MessageId>,
    /// When, by the store's clock.
    pub at: Millis,
    /// What happened.
    pub kind: EventKind,
}

/// A fact in a history, as users read and export it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Position in the history, from 1 without gap.
    pub event_id: u64,
    /// The scheduling event that this one is an outcome of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_event_id: Option<u64>,
    /// The instance.
    pub instance_id: String,
    /// The execution of the instance.
    pub execution_id: u64,
    /// When, in milliseconds since the Unix epoch by the store's clock.
    pub timestamp_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

impl Event {
    /// The public view of a stored event.
    pub fn from_stored(instance: &InstanceId, execution: ExecutionId, event: HistoryEvent) -> Self {
        Self {
            event_id: event.event_id.0,
            source_event_id: event.source_event_id.map(|id| id.0),
            instance_id: instance.as_str().to_owned(),
            execution_id: execution.0,
            timestamp_ms: event.at.0,
            kind: event.kind,
        }
    }

    /// Position in the history, from 1 without gap.
    pub fn event_id(&self) -> u64 {
        self.event_id
    }

    /// The scheduling event that this one is an outcome of.
    pub fn source_event_id(&self) -> Option<u64> {
        self.source_event_id
    }

    /// Whether this is the last event of its execution.
    pub fn is_terminal(&self) -> bool {
        self.kind.is_terminal()
    }
}

/// The activity name under which histories record the read of another instance's value.
pub(crate) const KV_READ_ACTIVITY: &str = "outlast::read_kv";

/// Recorded in the first event of a copy: up to event `at`, its code is told that it is the copied instance, and draws that
/// one's ids; after that, it is told its own identity and draws ids of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkPoint {
    /// The last event that was copied.
    pub at: EventId,
    /// The instance that it was copied from.
    pub instance: InstanceId,
    /// The execution that it was copied from.
    pub execution: ExecutionId,
    /// Source of the deterministic ids behind it.
    pub seed: u64,
}

/// One value of an instance's key-value state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvEntry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// When it was set.
    pub last_updated_at_ms: u64,
}

/// What an execution inherits from the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// The whole key-value state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kv: Vec<KvEntry>,
    /// The custom status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_status: Option<String>,
    /// How often the custom status was set.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub custom_status_version: u64,
}

impl Carried {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Who ran an attempt, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptInfo {
    /// The worker that ran it.
    pub worker: String,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Milliseconds between dispatch and start.
    pub queued_ms: u64,
    /// Milliseconds of the run.
    pub ran_ms: u64,
    /// A heartbeat of the activity may be stored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub heartbeat: bool,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_one(value: &u32) -> bool {
    *value == 1
}

fn one() -> u32 {
    1
}

/// What happened. Variants are never removed and their fields never change their meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
#[expect(missing_docs, reason = "fields of a closed vocabulary, named in the glossary")]
pub enum EventKind {
    /// First event of an execution.
    OrchestrationStarted {
        name: String,
        version: String,
        input: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_instance: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_id: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_execution: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_token: Option<Token>,
        /// Source of the deterministic ids of this execution.
        seed: u64,
        /// By which rules it runs.
        #[serde(default, skip_serializing_if = "Rules::are_first")]
        rules: Rules,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        traceparent: Option<String>,
        #[serde(default, skip_serializing_if = "Carried::is_empty")]
        carried: Carried,
        /// By which limits its code is answered; those of the node in histories from before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limits: Option<CodeLimits>,
        /// Where this history was copied from another instance, in order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        forks: Vec<ForkPoint>,
    },
    /// The code returned `Ok`.
    OrchestrationCompleted {
        output: String,
    },
    /// The instance failed.
    OrchestrationFailed {
        details: ErrorDetails,
    },
    /// The execution ended, the next one begins.
    OrchestrationContinuedAsNew {
        input: String,
    },
    /// A cancel arrived.
    OrchestrationCancelRequested {
        reason: String,
    },
    /// Turns stop until resumed.
    OrchestrationPaused,
    /// Turns go on.
    OrchestrationResumed,
    ActivityScheduled {
        name: String,
        input: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_id: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tag: Option<String>,
        token: Token,
        /// Which attempt of a retry policy, from 1.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        attempt: u32,
        /// The scheduling event of the first attempt, when this is a later one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        first_event_id: Option<u64>,
        #[serde(default, skip_serializing_if = "ActivityTimeouts::is_none")]
        timeouts: ActivityTimeouts,
    },
    ActivityCompleted {
        result: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<AttemptInfo>,
    },
    ActivityFailed {
        details: ErrorDetails,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<AttemptInfo>,
    },
    ActivityCancelRequested {
        reason: String,
    },
    TimerCreated {
        fire_at_ms: u64,
    },
    TimerFired {
        fire_at_ms: u64,
    },
    ExternalSubscribed {
        name: String,
    },
    ExternalEvent {
        name: String,
        data: String,
    },
    ExternalSubscribedCancelled,
    QueueSubscribed {
        name: String,
    },
    QueueEventDelivered {
        name: String,
        data: String,
    },
    QueueSubscriptionCancelled,
    /// A detached start.
    OrchestrationChained {
        name: String,
        instance: String,
        input: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
    },
    SubOrchestrationScheduled {
        name: String,
        instance: String,
        input: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
        token: Token,
    },
    SubOrchestrationCompleted {
        result: String,
    },
    SubOrchestrationFailed {
        details: ErrorDetails,
    },
    SubOrchestrationCancelRequested {
        reason: String,
    },
    CustomStatusUpdated {
        status: Option<String>,
    },
    KeyValueSet {
        key: String,
        value: String,
        last_updated_at_ms: u64,
    },
    KeyValueCleared {
        key: String,
    },
    KeyValuesCleared,
}

impl EventKind {
    /// Whether orchestration code asked for this, rather than something that arrived.
    pub(crate) fn is_command(&self) -> bool {
        match self {
            Self::ActivityScheduled { .. }
            | Self::ActivityCancelRequested { .. }
            | Self::TimerCreated { .. }
            | Self::ExternalSubscribed { .. }
            | Self::ExternalSubscribedCancelled
            | Self::QueueSubscribed { .. }
            | Self::QueueSubscriptionCancelled
            | Self::OrchestrationChained { .. }
            | Self::SubOrchestrationScheduled { .. }
            | Self::SubOrchestrationCancelRequested { .. }
            | Self::CustomStatusUpdated { .. }
            | Self::KeyValueSet { .. }
            | Self::KeyValueCleared { .. }
            | Self::KeyValuesCleared => true,
            Self::OrchestrationStarted { .. }
            | Self::OrchestrationCompleted { .. }
            | Self::OrchestrationFailed { .. }
            | Self::OrchestrationContinuedAsNew { .. }
            | Self::OrchestrationCancelRequested { .. }
            | Self::OrchestrationPaused
            | Self::OrchestrationResumed
            | Self::ActivityCompleted { .. }
            | Self::ActivityFailed { .. }
            | Self::TimerFired { .. }
            | Self::ExternalEvent { .. }
            | Self::QueueEventDelivered { .. }
            | Self::SubOrchestrationCompleted { .. }
            | Self::SubOrchestrationFailed { .. } => false,
        }
    }

    /// Whether this is the last event of an execution.
    pub fn is_terminal(&self) -> bool {
        matches!(
            self,
            Self::OrchestrationCompleted { .. }
                | Self::OrchestrationFailed { .. }
                | Self::OrchestrationContinuedAsNew { .. }
        )
    }

    /// Whether something that is open is no longer wanted.
    pub(crate) fn is_cancel_request(&self) -> bool {
        matches!(self, Self::ActivityCancelRequested { .. } | Self::SubOrchestrationCancelRequested { .. })
    }

    /// A copy in the shape in which replay compares commands: without what the store or the clock decided.
    pub(crate) fn comparable(&self) -> EventKind {
        let mut kind = self.clone();
        match &mut kind {
            Self::ActivityScheduled { token, attempt, first_event_id, timeouts, .. } => {
                *token = Token(0);
                *attempt = 1;
                *first_event_id = None;
                *timeouts = ActivityTimeouts::default();
            }
            Self::SubOrchestrationScheduled { token, .. } => *token = Token(0),
            Self::TimerCreated { fire_at_ms } => *fire_at_ms = 0,
            Self::KeyValueSet { last_updated_at_ms, .. } => *last_updated_at_ms = 0,
            // A status is for people: only whether it is set counts.
            Self::CustomStatusUpdated { status: Some(text) } => text.clear(),
            _ => {}
        }
        kind
    }
}
