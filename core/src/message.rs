//! What arrives for an instance.

use serde::{Deserialize, Serialize};

use crate::{AttemptInfo, ErrorDetails, EventId, ExecutionId, InboxSeq, InstanceId, MessageId, Token};

/// Something that arrived for an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// A second message with the same id has no effect.
    pub id: MessageId,
    /// What it is.
    pub kind: MessageKind,
}

impl Message {
    /// Bytes of its payload.
    pub fn payload_bytes(&self) -> usize {
        match &self.kind {
            MessageKind::Start(start) | MessageKind::Replace(start) => start.input.len(),
            MessageKind::Raise { data, .. } | MessageKind::Enqueue { data, .. } => data.len(),
            MessageKind::Cancel { reason, .. } => reason.len(),
            MessageKind::Pause | MessageKind::Resume => 0,
            MessageKind::ActivityDone { outcome: result, .. } | MessageKind::ChildDone { result, .. } => {
                result.as_ref().map_or_else(|details| details.display_message().len(), String::len)
            }
        }
    }
}

/// A message together with where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Incoming {
    /// Its row in the inbox, which the applying turn deletes; `None` when it came directly from a worker.
    pub seq: Option<InboxSeq>,
    /// The message.
    pub message: Message,
}

/// A new instance as it was stored: enough to run its first turn without reading it. Like everything warm, it only remembers
/// a fact: the store refuses a turn based on it if somebody else was faster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartSnapshot {
    /// The instance.
    pub instance: InstanceId,
    /// Its first message, a start.
    pub message: Message,
    /// Its row in the inbox.
    pub seq: InboxSeq,
}

/// Kinds of messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MessageKind {
    /// Begin the first execution.
    Start(StartMessage),
    /// An ephemeral event.
    Raise {
        /// The event's name.
        name: String,
        /// The payload.
        data: String,
    },
    /// A message for a durable queue.
    Enqueue {
        /// The queue's name.
        queue: String,
        /// The payload.
        data: String,
    },
    /// End the instance and its tree.
    Cancel {
        /// The token under which a parent started it; a cancel with another one is for somebody else.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        child: Option<Token>,
        /// Why.
        reason: String,
    },
    /// End what runs, as a cancel does, and begin anew with this start.
    Replace(StartMessage),
    /// Stop turns.
    Pause,
    /// Let turns go on.
    Resume,
    /// An activity has ended.
    ActivityDone {
        /// The execution that scheduled it.
        execution: ExecutionId,
        /// The scheduling event.
        event: EventId,
        /// The token of the scheduling event.
        token: Token,
        /// How it ended.
        outcome: ActivityOutcome,
        /// Who ran it.
        run: Option<AttemptInfo>,
    },
    /// A child instance has ended.
    ChildDone {
        /// The parent's execution that scheduled it.
        execution: ExecutionId,
        /// The scheduling event.
        event: EventId,
        /// The token of the scheduling event.
        token: Token,
        /// How it ended.
        result: Result<String, ErrorDetails>,
    },
}

/// How an activity ended.
pub type ActivityOutcome = Result<String, ErrorDetails>;

/// What begins an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartMessage {
    /// The orchestration's name.
    pub name: String,
    /// The exact version; `None` lets the registry's policy choose.
    pub version: Option<String>,
    /// The input.
    pub input: String,
    /// Who waits for the outcome.
    pub parent: Option<ParentLink>,
    /// W3C trace context of the caller.
    pub traceparent: Option<String>,
}

/// The parent's await that a child instance answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentLink {
    /// The parent.
    pub instance: InstanceId,
    /// Its execution.
    pub execution: ExecutionId,
    /// Its scheduling event.
    pub event: EventId,
    /// The token of that event.
    pub token: Token,
}
