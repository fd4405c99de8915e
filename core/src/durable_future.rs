//! The future of something durable: an activity, a timer, an event, a queue message or a child.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::journal::{Journal, OpKind, Outcome};
use crate::{ActivityTimeouts, EventId, EventKind};

/// Resolves when what it stands for has ended. Dropping it before that cancels what it stands for: an activity or child
/// is cancelled, a timer forgotten, a wait or dequeue withdrawn, so that it takes no event.
#[must_use = "a durable future does nothing for the code until it is awaited, and cancels its work when it is dropped"]
pub struct DurableFuture<T> {
    journal: Arc<Journal>,
    state: State<T>,
}

enum State<T> {
    Open { id: EventId, convert: Box<dyn FnOnce(Outcome) -> T + Send> },
    Settled(T),
    Taken,
}

impl<T> DurableFuture<T> {
    pub(crate) fn open(
        journal: &Arc<Journal>,
        kind: EventKind,
        op: OpKind,
        convert: impl FnOnce(Outcome) -> T + Send + 'static,
    ) -> Self {
        let id = journal.open(kind, op);
        Self { journal: Arc::clone(journal), state: State::Open { id, convert: Box::new(convert) } }
    }

    /// A future that has its value already: the call was refused.
    pub(crate) fn settled(journal: &Arc<Journal>, value: T) -> Self {
        Self { journal: Arc::clone(journal), state: State::Settled(value) }
    }

    /// Routes an activity to the worker pool with this tag.
    ///
    /// # Panics
    /// When the future stands for something other than an activity, or when it was awaited before: a tag is part of the
    /// scheduling event.
    pub fn with_tag(self, tag: impl Into<String>) -> Self {
        let tag = tag.into();
        let checked = self.journal.lock().limits.check_name("tag", &tag);
        if let Err(refused) = checked {
            panic!("with_tag: {refused}");
        }
        self.amend("with_tag", |kind| match kind {
            EventKind::ActivityScheduled { tag: slot, .. } => {
                *slot = Some(tag);
                true
            }
            _ => false,
        })
    }

    /// Gives an activity deadlines; one that is missed ends it with an error that begins with `timeout:`.
    ///
    /// # Panics
    /// Like [`DurableFuture::with_tag`].
    pub fn with_timeouts(self, timeouts: ActivityTimeouts) -> Self {
        self.amend_timeouts("with_timeouts", |slot| timeouts.or(slot))
    }

    /// A worker has to start the activity within `limit`. Panics like [`DurableFuture::with_tag`].
    pub fn with_schedule_to_start(self, limit: Duration) -> Self {
        self.amend_timeouts("with_schedule_to_start", |slot| slot.schedule_to_start(limit))
    }

    /// The activity has to end within `limit` of its start. Panics like [`DurableFuture::with_tag`].
    pub fn with_start_to_close(self, limit: Duration) -> Self {
        self.amend_timeouts("with_start_to_close", |slot| slot.start_to_close(limit))
    }

    /// The activity has to call `heartbeat` at least this often. Panics like [`DurableFuture::with_tag`].
    pub fn with_heartbeat_timeout(self, limit: Duration) -> Self {
        self.amend_timeouts("with_heartbeat_timeout", |slot| slot.heartbeat(limit))
    }

    fn amend_timeouts(self, what: &str, change: impl FnOnce(ActivityTimeouts) -> ActivityTimeouts) -> Self {
        self.amend(what, |kind| match kind {
            EventKind::ActivityScheduled { timeouts, .. } => {
                *timeouts = change(*timeouts);
                true
            }
            _ => false,
        })
    }

    /// Changes the event that schedules an activity, before the turn is over; `change` tells whether it is one.
    fn amend(self, what: &str, change: impl FnOnce(&mut EventKind) -> bool) -> Self {
        let State::Open { id, .. } = &self.state else { return self };
        let mut is_activity = false;
        let amended = self.journal.lock().amend(*id, |kind| is_activity = change(kind));
        assert!(amended && is_activity, "{what} belongs to an activity, right behind the call that schedules it");
        self
    }

    /// Converts the result; the future stays the same one for replay.
    pub fn map<U>(mut self, convert: impl FnOnce(T) -> U + Send + 'static) -> DurableFuture<U>
    where
        T: Send + 'static,
    {
        let journal = Arc::clone(&self.journal);
        let state = match std::mem::replace(&mut self.state, State::Taken) {
            State::Open { id, convert: inner } => {
                State::Open { id, convert: Box::new(move |outcome| convert(inner(outcome))) }
            }
            State::Settled(value) => State::Settled(convert(value)),
            State::Taken => State::Taken,
        };
        DurableFuture { journal, state }
    }
}

impl<T> Unpin for DurableFuture<T> {}

impl<T> Future for DurableFuture<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        let outcome = match &this.state {
            State::Open { id, .. } => match this.journal.lock().poll_op(*id, cx.waker()) {
                Poll::Ready(outcome) => Some(outcome),
                Poll::Pending => return Poll::Pending,
            },
            State::Settled(_) | State::Taken => None,
        };
        match (std::mem::replace(&mut this.state, State::Taken), outcome) {
            (State::Open { convert, .. }, Some(outcome)) => Poll::Ready(convert(outcome)),
            (State::Settled(value), _) => Poll::Ready(value),
            (State::Open { .. } | State::Taken, _) => panic!("a durable future was polled after it had completed"),
        }
    }
}

impl<T> Drop for DurableFuture<T> {
    fn drop(&mut self) {
        let State::Open { id, .. } = self.state else { return };
        let mut state = self.journal.lock();
        // Passivation, shutdown and unwinding drop futures too; only code that runs in a turn means it.
        if !state.polling || std::thread::panicking() {
            return;
        }
        let Some(kind) = state.forget_op(id) else { return };
        drop(state);
        let reason = "dropped by the orchestration".to_owned();
        let cancel = match kind {
            OpKind::Activity { .. } => EventKind::ActivityCancelRequested { reason },
            OpKind::Child { .. } => EventKind::SubOrchestrationCancelRequested { reason },
            OpKind::Wait { .. } => EventKind::ExternalSubscribedCancelled,
            OpKind::Dequeue { .. } => EventKind::QueueSubscriptionCancelled,
            OpKind::Timer { .. } => return,
        };
        self.journal.emit(Some(id), cancel);
    }
}

impl<T> fmt::Debug for DurableFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Open { id, .. } => format!("event {id}"),
            State::Settled(_) => "settled".to_owned(),
            State::Taken => "taken".to_owned(),
        };
        f.debug_tuple("DurableFuture").field(&state).finish()
    }
}
