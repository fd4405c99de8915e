//! A turn while it is decided: what it has recorded so far, and what it will ask for when it is finished.

use std::collections::BTreeMap;

use crate::{
    ActivityItem, ActivityKey, Effect, EventId, EventKind, Expected, Incoming, MessageId, Millis, OutboundMessage,
    Turn, Verdict,
};

/// A turn in the making.
pub(crate) struct Draft {
    pub(crate) now: Millis,
    pub(crate) seed: u64,
    pub(crate) turn: Turn,
    /// Activities and children that were scheduled in this turn and are still wanted.
    pub(crate) dispatch: BTreeMap<EventId, ActivityItem>,
    pub(crate) children: BTreeMap<EventId, NewChild>,
    /// Bytes of queue messages that were taken in this turn.
    pub(crate) queue_bytes: usize,
}

/// A child that was scheduled in this turn.
pub(crate) struct NewChild {
    pub(crate) start: OutboundMessage,
    /// Why it was cancelled in the same turn.
    pub(crate) cancelled: Option<String>,
}

impl Draft {
    pub(crate) fn new(expected: Expected, now: Millis, seed: u64) -> Self {
        let turn = Turn { expected, ..Turn::default() };
        Self { now, seed, turn, dispatch: BTreeMap::new(), children: BTreeMap::new(), queue_bytes: 0 }
    }

    /// Marks a message as dealt with.
    pub(crate) fn consume(&mut self, incoming: &Incoming, verdict: Verdict) {
        match incoming.seq {
            Some(seq) => self.turn.consumed.push(seq),
            None => self.turn.verdicts.push((incoming.message.id.clone(), verdict)),
        }
    }

    /// Cancels an activity, or never dispatches it when it was scheduled in this very turn.
    pub(crate) fn cancel_activity(&mut self, key: ActivityKey) {
        if self.dispatch.remove(&key.event).is_none() {
            self.turn.effects.push(Effect::CancelActivity(key));
        }
    }

    /// What was scheduled in the last turn of an execution is recorded and not run.
    pub(crate) fn drop_unawaited(&mut self) {
        self.dispatch.clear();
        self.children.clear();
    }
}

/// An event before it has a number.
pub(crate) struct NewEvent {
    /// The event that it answers.
    pub(crate) source: Option<EventId>,
    /// The message that has brought it.
    pub(crate) message: Option<MessageId>,
    pub(crate) kind: EventKind,
}

impl NewEvent {
    /// One that answers no other and that no message has brought.
    pub(crate) fn own(kind: EventKind) -> Self {
        Self { source: None, message: None, kind }
    }

    /// What the code asks of an event of its own.
    pub(crate) fn about(source: EventId, kind: EventKind) -> Self {
        Self { source: Some(source), message: None, kind }
    }
}
