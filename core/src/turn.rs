//! What a turn decided: data that the shell commits and then carries out.

use serde::{Deserialize, Serialize};

use crate::{
    ActivityKey, ActivityRef, ActivityTimeouts, EventId, ExecutionId, HistoryEvent, InboxSeq, InstanceId,
    InstanceState, KV_READ_ACTIVITY, KvEntry, LogLine, Message, MessageId, Millis, Token,
};

/// One pass over an instance: messages in, events and effects out.
///
/// Everything down to `held` is durable in one transaction BEFORE any of `effects`, `logs`, `verdicts` or the new status
/// is shown to anyone outside.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// What the store must hold for this turn to be valid.
    pub expected: Expected,
    /// New events, in order; those of a new execution follow those of the old one.
    pub events: Vec<(ExecutionId, HistoryEvent)>,
    /// The new columns of the instance's row.
    pub state: InstanceState,
    /// Inbox rows that this turn applied.
    pub consumed: Vec<InboxSeq>,
    /// Changes of the key-value state.
    pub kv: Vec<KvChange>,
    /// Stored heartbeats that nobody will read any more, by the idempotency keys of their activities.
    pub heartbeats: Vec<String>,
    /// Messages to other instances.
    pub outbound: Vec<OutboundMessage>,
    /// Messages that came directly and must wait durably in the instance's own inbox.
    pub held: Vec<Message>,
    /// What to do outside, after the commit.
    pub effects: Vec<Effect>,
    /// Log lines of the code, after the commit.
    pub logs: Vec<LogLine>,
    /// For each message that came directly, what became of it.
    pub verdicts: Vec<(MessageId, Verdict)>,
    /// The next turn can follow at once, without a message.
    pub again: bool,
    /// Rows that this turn left in the inbox are for what comes next: memory is to be made anew from the store.
    pub reload: bool,
}

impl Turn {
    /// Whether there is anything to commit.
    pub fn is_empty(&self, before: &InstanceState) -> bool {
        self.events.is_empty()
            && self.consumed.is_empty()
            && self.outbound.is_empty()
            && self.held.is_empty()
            && self.state == *before
    }
}

/// The optimistic check of a commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The current execution.
    pub execution: ExecutionId,
    /// Its last event.
    pub last_event_id: EventId,
}

/// A change of the key-value state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvChange {
    /// Set one value.
    Set(KvEntry),
    /// Remove one key.
    Clear(String),
    /// Remove all keys.
    ClearAll,
}

/// A message to another instance, inserted in the turn's transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundMessage {
    /// The receiver. A `Start` message creates it; any other message to an unknown receiver is dropped.
    pub to: InstanceId,
    /// The message.
    pub message: Message,
    /// What the sender gets in its own inbox when a `Start` finds the id taken.
    pub when_taken: Option<Message>,
}

/// Something to be done outside after the commit. Doing it twice is harmless.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Hand an activity to a worker.
    Dispatch(Box<ActivityItem>),
    /// Tell whoever runs or queues it that an activity is no longer wanted.
    CancelActivity(ActivityKey),
    /// Read another instance's value from the store.
    ReadKv(Box<KvRead>),
}

/// A value of another instance to be read. Its answer, the value or `null` as JSON, comes back as the result of an activity: that
/// is how histories record it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvRead {
    /// The event that asks.
    pub asked_by: ActivityKey,
    /// The token of that event.
    pub token: Token,
    /// Whose value.
    pub instance: InstanceId,
    /// Its key.
    pub key: String,
}

impl KvRead {
    /// The read that an item stands for; `None` for an activity.
    pub(crate) fn of(item: &ActivityItem) -> Option<Self> {
        if item.name != KV_READ_ACTIVITY {
            return None;
        }
        let (instance, key): (String, String) = serde_json::from_str(&item.input).ok()?;
        Some(Self { asked_by: item.key.clone(), token: item.token, instance: InstanceId::new(instance), key })
    }
}

impl From<ActivityItem> for Effect {
    fn from(item: ActivityItem) -> Self {
        KvRead::of(&item).map_or_else(|| Self::Dispatch(Box::new(item)), |read| Self::ReadKv(Box::new(read)))
    }
}

/// An activity on its way to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActivityItem {
    /// What it is identified by.
    pub key: ActivityKey,
    /// The token of its scheduling event.
    pub token: Token,
    /// The activity's name.
    pub name: String,
    /// The input; empty when `input_stored`.
    pub input: String,
    /// The input is too large to travel along: the worker reads it from the scheduling event.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub input_stored: bool,
    /// The worker pool; `None` is the default pool.
    pub tag: Option<String>,
    /// The session it is bound to.
    pub session_id: Option<String>,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// When it was scheduled, by the store's clock.
    #[serde(default)]
    pub scheduled_at: Millis,
    /// Deadlines of the call.
    #[serde(default)]
    pub timeouts: ActivityTimeouts,
    /// The first scheduling event of its retry policy; the idempotency key derives from it.
    pub first_event: EventId,
    /// The orchestration's name.
    pub orchestration: String,
    /// The orchestration's version.
    pub version: String,
    /// W3C trace context of the instance.
    pub traceparent: Option<String>,
}

impl ActivityItem {
    /// The same in every attempt of the activity, and under no other activity of the instance.
    pub fn idempotency_key(&self) -> String {
        idempotency_key(&self.key.instance, self.key.execution, self.first_event)
    }

    /// Which activity it is, of which life.
    pub fn activity(&self) -> ActivityRef {
        ActivityRef { key: self.key.clone(), token: self.token }
    }
}

pub(crate) fn idempotency_key(instance: &InstanceId, execution: ExecutionId, first_event: EventId) -> String {
    format!("{instance}/{execution}/{first_event}")
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It is in the history, or waits durably.
    Applied,
    /// It was applied before, or nobody waits for it any more.
    AlreadyDone,
    /// Nothing here ever asked for it.
    Unknown,
}
