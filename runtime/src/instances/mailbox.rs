//! What waits for one instance in memory, and how it gets there.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use outlast_broker::ReportReply;
use outlast_core::{ActivityKey, InstanceId, Message, StartSnapshot, Token};
use tokio::sync::oneshot;

/// Delivers input to instances. `WarmInstances` implements it; senders know nothing else of the warm instances.
pub(crate) trait Mailboxes: Send + Sync {
    /// Delivers input to an instance, and hydrates the instance if it is not warm.
    fn deliver(&self, instance: &InstanceId, inbound: Inbound);
}

/// Tells an actor that its mailbox has something.
#[derive(Debug)]
pub(crate) struct Run;

/// One input of an instance.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// The inbox has something new.
    Nudge,
    /// The instance is new, and the snapshot is all of it.
    Start(Box<StartSnapshot>),
    /// A timer may be due, or a stalled turn may be tried again.
    Wake,
    /// The instance may have been deleted: it must be read again from the store.
    Reread,
    /// A worker's result, and where its answer goes.
    Direct(Message, oneshot::Sender<ReportReply>),
    /// A worker asks whether an activity is wanted.
    Ask { key: ActivityKey, token: Token, answer: oneshot::Sender<ReportReply> },
}

/// Collected input of an instance; one run of the actor takes all of it.
#[derive(Default)]
pub(crate) struct Mailbox {
    state: Mutex<MailboxState>,
}

#[derive(Default)]
pub(crate) struct MailboxState {
    pub(crate) inbound: VecDeque<Inbound>,
    /// The actor was told to run and has not finished.
    pub(crate) scheduled: bool,
}

impl Mailbox {
    pub(crate) fn lock(&self) -> MutexGuard<'_, MailboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds input; `true` when the actor must be told to run.
    pub(crate) fn push(&self, inbound: Inbound) -> bool {
        let mut state = self.lock();
        // The turn for the input that waits covers this one too, and its run is scheduled already.
        if matches!(
            (&inbound, state.inbound.back()),
            (Inbound::Nudge, Some(Inbound::Nudge)) | (Inbound::Wake, Some(Inbound::Wake))
        ) {
            return false;
        }
        state.inbound.push_back(inbound);
        !std::mem::replace(&mut state.scheduled, true)
    }

    /// Takes up to `max` inputs; when there are none, the run is over.
    pub(crate) fn take(&self, max: usize) -> Vec<Inbound> {
        let mut state = self.lock();
        let count = state.inbound.len().min(max);
        if count == 0 {
            state.scheduled = false;
        }
        state.inbound.drain(..count).collect()
    }
}
