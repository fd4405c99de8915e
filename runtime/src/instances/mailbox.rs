//! What waits for one instance in memory, and how it gets there.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use outlast_broker::ReportReply;
use outlast_core::{ActivityKey, InstanceId, Message, StartSnapshot, Token};
use tokio::sync::oneshot;

/// Brings something to instances. Implemented by the warm instances; whoever has something for an instance knows no more of them.
pub(crate) trait Mailboxes: Send + Sync {
    /// Brings something to an instance, which is hydrated for it when it is not warm.
    fn deliver(&self, instance: &InstanceId, inbound: Inbound);
}

/// Tells an actor that its mailbox has something.
#[derive(Debug)]
pub(crate) struct Run;

/// Something for an instance to look at.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// The inbox has something new.
    Nudge,
    /// The instance is new, and this is all there is of it.
    Start(Box<StartSnapshot>),
    /// A timer may be due, or a stalled turn may be tried again.
    Wake,
    /// The instance may have been deleted: memory is not to be believed.
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
    /// A run is on its way or under way.
    pub(crate) scheduled: bool,
}

impl Mailbox {
    pub(crate) fn lock(&self) -> MutexGuard<'_, MailboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds input; `true` when the actor must be told to run.
    pub(crate) fn push(&self, inbound: Inbound) -> bool {
        let mut state = self.lock();
        // One nudge makes the turn read everything, so a second one that waits says nothing new.
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
