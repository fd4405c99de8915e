//! What is due soon, in memory; what is due later stays in the store.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use outlast_core::{InstanceId, Millis};
use tokio::sync::Notify;

/// The next wake-up of each instance that is due within the horizon.
#[derive(Default)]
pub(crate) struct Wheel {
    state: Mutex<WheelState>,
    sooner: Notify,
}

#[derive(Default)]
struct WheelState {
    horizon: Millis,
    due: BTreeSet<(Millis, InstanceId)>,
    at: HashMap<InstanceId, Millis>,
}

impl Wheel {
    /// Notes when an instance must be looked at; `None` forgets it. Beyond the horizon the store knows it.
    pub(crate) fn set(&self, instance: &InstanceId, at: Option<Millis>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let within = at.filter(|at| *at <= state.horizon);
        if state.at.get(instance).copied() == within {
            return;
        }
        if let Some(old) = state.at.remove(instance) {
            state.due.remove(&(old, instance.clone()));
        }
        let Some(at) = within else { return };
        let first = state.due.first().is_none_or(|(soonest, _)| at < *soonest);
        state.due.insert((at, instance.clone()));
        state.at.insert(instance.clone(), at);
        if first {
            self.sooner.notify_one();
        }
    }

    /// From now on, what is due up to `horizon` is kept here.
    pub(crate) fn extend_to(&self, horizon: Millis) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).horizon = horizon;
    }

    /// Takes all that is due by `now`.
    pub(crate) fn take_due(&self, now: Millis) -> Vec<InstanceId> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        while state.due.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, instance)) = state.due.pop_first() {
                state.at.remove(&instance);
                taken.push(instance);
            }
        }
        taken
    }

    /// The soonest entry.
    pub(crate) fn next(&self) -> Option<Millis> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).due.first().map(|(at, _)| *at)
    }

    /// Returns when an entry became the soonest.
    pub(crate) async fn sooner(&self) {
        self.sooner.notified().await;
    }

    /// Forgets everything: this node holds no shard any more.
    pub(crate) fn clear(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.due.clear();
        state.at.clear();
    }
}
