//! Troubles that last, as the parts of a node notice them: since when, and whose. `report` reports those that last too long. A
//! step of an instance pays no more than a look at a flag.

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

/// Why activities were refused.
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
    /// Read without the lock: there is almost never an entry.
    any: AtomicBool,
    entries: Mutex<BTreeMap<K, (V, Instant)>>,
}

impl<K, V> Default for Since<K, V> {
    fn default() -> Self {
        Self { any: AtomicBool::new(false), entries: Mutex::default() }
    }
}

impl<K: Clone + Ord, V: Clone> Since<K, V> {
    /// Notes that a state holds. Returns when it was first noted.
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

    /// The state is over.
    pub(crate) fn end(&self, key: &K) {
        // Whoever notes a key also ends it, in order, so the flag read here is never older than the note.
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

    /// States that have lasted for this long.
    pub(crate) fn lasting(&self, least: Duration) -> Vec<(K, V, Duration)> {
        let entries = self.lock();
        let ages = entries.iter().map(|(key, (value, since))| (key.clone(), value.clone(), since.elapsed()));
        ages.filter(|(_, _, age)| *age >= least).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, (V, Instant)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
