//! Wake-ups that are due soon, in memory; later ones stay in the store.

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
    /// Every instance that was due by then has been woken.
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
    /// Notes when an instance must be woken; `None` forgets it. Times beyond the horizon stay in the store.
    pub(crate) fn set(&self, instance: &InstanceId, at: Option<Millis>) {
        let mut state = self.lock();
        if state.set(instance, at) {
            self.sooner.notify_one();
        }
    }

    /// Notes a due time that was read from the store. A turn committed since that read may have noted a newer time, so the sooner
    /// of both stays: waking an instance too early only costs a look at it.
    pub(crate) fn set_if_sooner(&self, instance: &InstanceId, at: Millis) {
        let mut state = self.lock();
        if state.at.get(instance).is_none_or(|known| at < *known) && state.set(instance, Some(at)) {
            self.sooner.notify_one();
        }
    }

    /// From now on, keeps wake-ups that are due up to `horizon`.
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

    /// Notes that every instance due by `now` has been woken, including those that only the store knew of.
    pub(crate) fn note_woken(&self, now: Millis) {
        self.lock().woken_until = now;
    }

    /// Up to when every due instance has been woken.
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
        // The store's answer says 30,000; a turn committed after that read is due at 5,000.
        due_queue.set(&id, Some(Millis(5_000)));
        due_queue.set_if_sooner(&id, Millis(30_000));
        assert_eq!(due_queue.next(), Some(Millis(5_000)));
        due_queue.set_if_sooner(&id, Millis(4_000));
        assert_eq!(due_queue.take_due(Millis(4_000)), std::slice::from_ref(&id));
        assert_eq!(due_queue.next(), None);
        // A turn may put a wake-up off.
        due_queue.set_if_sooner(&id, Millis(6_000));
        due_queue.set(&id, Some(Millis(9_000)));
        assert_eq!(due_queue.next(), Some(Millis(9_000)));
    }
}
