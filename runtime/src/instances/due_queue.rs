//! What is due soon, in memory; what is due later stays in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use outlast_core::{InstanceId, Millis};
use tokio::sync::Notify;

/// The next wake-up of each instance that is due within the horizon.
#[derive(Default)]
pub(crate) struct DueQueue {
    state: Mutex<Entries>,
    sooner: Notify,
}

#[derive(Default)]
struct Entries {
    horizon: Millis,
    due: BTreeSet<(Millis, InstanceId)>,
    at: BTreeMap<InstanceId, Millis>,
    /// All that was due by then has been woken.
    woken_until: Millis,
}

impl Entries {
    /// Notes when an instance is due; `true` when that is now the soonest of all.
    fn set(&mut self, instance: &InstanceId, at: Option<Millis>) -> bool {
        let within = at.filter(|at| *at <= self.horizon);
        if self.at.get(instance).copied() == within {
            return false;
        }
        if let Some(old) = self.at.remove(instance) {
            self.due.remove(&(old, instance.clone()));
        }
        let Some(at) = within else { return false };
        let first = self.due.first().is_none_or(|(soonest, _)| at < *soonest);
        self.due.insert((at, instance.clone()));
        self.at.insert(instance.clone(), at);
        first
    }
}

impl DueQueue {
    /// Notes when an instance must be looked at; `None` forgets it. Beyond the horizon the store knows it.
    pub(crate) fn set(&self, instance: &InstanceId, at: Option<Millis>) {
        let mut state = self.lock();
        if state.set(instance, at) {
            self.sooner.notify_one();
        }
    }

    /// Notes when an instance is due as a look at the store has it. A turn may have been committed since that look, and has noted
    /// what is true now, so the sooner of both stays: to wake an instance too early costs a look at it.
    pub(crate) fn set_if_sooner(&self, instance: &InstanceId, at: Millis) {
        let mut state = self.lock();
        if state.at.get(instance).is_none_or(|known| at < *known) && state.set(instance, Some(at)) {
            self.sooner.notify_one();
        }
    }

    /// From now on, what is due up to `horizon` is kept here.
    pub(crate) fn extend_to(&self, horizon: Millis) {
        self.lock().horizon = horizon;
    }

    /// Takes all that is due by `now`.
    pub(crate) fn take_due(&self, now: Millis) -> Vec<InstanceId> {
        let mut state = self.lock();
        let mut taken = Vec::new();
        while state.due.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, instance)) = state.due.pop_first() {
                state.at.remove(&instance);
                taken.push(instance);
            }
        }
        taken
    }

    /// Notes that all that was due by `now` has been woken, what only the store knew of included.
    pub(crate) fn note_woken(&self, now: Millis) {
        self.lock().woken_until = now;
    }

    /// By when all that was due has been woken.
    pub(crate) fn woken_until(&self) -> Millis {
        self.lock().woken_until
    }

    /// The soonest entry.
    pub(crate) fn next(&self) -> Option<Millis> {
        self.lock().due.first().map(|(at, _)| *at)
    }

    /// Returns when an entry became the soonest.
    pub(crate) async fn sooner(&self) {
        self.sooner.notified().await;
    }

    /// Forgets everything: this node holds no shard any more.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        state.due.clear();
        state.at.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use outlast_core::{InstanceId, Millis};

    use super::DueQueue;

    #[test]
    fn a_look_that_overlaps_a_commit_does_not_put_off_what_the_commit_has_noted() {
        let (due_queue, id) = (DueQueue::default(), InstanceId::new("i"));
        due_queue.extend_to(Millis(60_000));
        // The look has read 30,000; a turn that was committed since is due at 5,000.
        due_queue.set(&id, Some(Millis(5_000)));
        due_queue.set_if_sooner(&id, Millis(30_000));
        assert_eq!(due_queue.next(), Some(Millis(5_000)));
        due_queue.set_if_sooner(&id, Millis(4_000));
        assert_eq!(due_queue.take_due(Millis(4_000)), std::slice::from_ref(&id));
        assert_eq!(due_queue.next(), None);
        // What a turn says is due later is due later.
        due_queue.set_if_sooner(&id, Millis(6_000));
        due_queue.set(&id, Some(Millis(9_000)));
        assert_eq!(due_queue.next(), Some(Millis(9_000)));
    }
}
