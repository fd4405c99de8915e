//! What goes wrong and lasts, as the parts of a node notice it: since when, and with whom. `shortages` reports what has lasted
//! for too long. Nothing of it costs a step of an instance more than a look at a flag.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outlast_core::{ActivityItem, ActivityKey, InstanceId};
use tokio::time::Instant;

/// The troubles of one node and its worker.
#[derive(Default)]
pub(crate) struct Troubles {
    /// Instances whose turns fail, and how the last one did.
    pub(crate) turns: Since<InstanceId, String>,
    /// The broker does not take activities.
    pub(crate) broker: Since<(), Refusal>,
    /// Results that no owner takes.
    pub(crate) results: Since<ActivityKey, Untaken>,
    /// All slots of the worker are taken.
    pub(crate) slots: Since<(), Full>,
    /// All sessions that the worker may hold are in use.
    pub(crate) sessions: Since<(), Full>,
}

/// Whether something waits for a worker that is full.
#[derive(Clone, Copy)]
pub(crate) struct Full {
    pub(crate) waits: bool,
    pub(crate) asked: Instant,
}

/// What the broker has not taken.
#[derive(Clone)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) first: ActivityItem,
}

/// Whose result it is.
#[derive(Clone)]
pub(crate) struct Untaken {
    pub(crate) activity: String,
    pub(crate) orchestration: String,
}

/// States that last, and since when.
pub(crate) struct Since<K, V> {
    /// Looked at without a lock: there is almost never anything.
    any: AtomicBool,
    entries: Mutex<BTreeMap<K, (V, Instant)>>,
}

impl<K, V> Default for Since<K, V> {
    fn default() -> Self {
        Self { any: AtomicBool::new(false), entries: Mutex::default() }
    }
}

impl<K: Clone + Ord, V: Clone> Since<K, V> {
    /// It is so now; since when stays as it was. Returns that moment.
    pub(crate) fn note(&self, key: K, value: V) -> Instant {
        let mut entries = self.lock();
        self.any.store(true, Ordering::Release);
        let entry = entries.entry(key).or_insert_with(|| (value.clone(), Instant::now()));
        entry.0 = value;
        entry.1
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.lock().get(key).map(|(value, _)| value.clone())
    }

    /// It is so no more.
    pub(crate) fn end(&self, key: &K) {
        // Whoever notes and ends the same key does both in order, so a stale flag is not read here.
        if self.any.load(Ordering::Acquire) {
            let mut entries = self.lock();
            entries.remove(key);
            self.any.store(!entries.is_empty(), Ordering::Release);
        }
    }

    pub(crate) fn clear(&self) {
        let mut entries = self.lock();
        entries.clear();
        self.any.store(false, Ordering::Release);
    }

    /// What has lasted for at least so long.
    pub(crate) fn lasting(&self, least: Duration) -> Vec<(K, V, Duration)> {
        let entries = self.lock();
        let ages = entries.iter().map(|(key, (value, since))| (key.clone(), value.clone(), since.elapsed()));
        ages.filter(|(_, _, age)| *age >= least).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, (V, Instant)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
