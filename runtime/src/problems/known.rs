//! What the parts of a node have noticed about instances that stand still: damaged ones, those whose code no node has, code that
//! does not return, and other lasting troubles. `report` looks at it every two seconds; a healthy turn pays with a few looks at
//! flags and one entry in `deciding`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outlast_core::{InstanceId, Millis};
use tokio::time::Instant;

use crate::problems::lasting::Troubles;
use crate::problems::notices::Notices;

/// The problems that a node knows of.
#[derive(Default)]
pub(crate) struct Problems {
    /// Troubles that last; the worker notes some of them.
    pub(crate) troubles: Arc<Troubles>,
    /// What was written to the log lately.
    pub(crate) notices: Notices,
    /// Instances that cannot be read or written, with the reason and since when.
    damaged: Mutex<BTreeMap<InstanceId, (String, Millis)>>,
    /// Instances whose orchestration no node has.
    stalled: Mutex<BTreeSet<InstanceId>>,
    /// How many activities no worker could run at the last look.
    unserved: AtomicUsize,
    /// Instances whose code is being run right now, and since when.
    deciding: Mutex<BTreeMap<InstanceId, Instant>>,
}

/// Marks that an instance's code is running, until it is dropped.
pub(crate) struct Deciding<'a> {
    problems: &'a Problems,
    instance: &'a InstanceId,
}

impl Drop for Deciding<'_> {
    fn drop(&mut self) {
        self.problems.lock_deciding().remove(self.instance);
    }
}

impl Problems {
    /// Notes that an instance cannot be read or written, since `now` or since it was first noted.
    pub(crate) fn note_damaged(&self, instance: &InstanceId, reason: String, now: Millis) {
        self.lock_damaged().entry(instance.clone()).or_insert_with(|| (reason, now));
    }

    /// A turn of the instance is committed, so it is not damaged.
    pub(crate) fn end_damaged(&self, instance: &InstanceId) {
        let mut damaged = self.lock_damaged();
        if !damaged.is_empty() {
            damaged.remove(instance);
        }
    }

    /// Damaged instances, with the reason and since when.
    pub(crate) fn damaged(&self) -> Vec<(InstanceId, String, Millis)> {
        let damaged = self.lock_damaged();
        damaged.iter().map(|(instance, (reason, since))| (instance.clone(), reason.clone(), *since)).collect()
    }

    /// Notes whether the turn of an instance could not begin because nobody has its code.
    pub(crate) fn note_stalled(&self, instance: &InstanceId, is_stalled: bool) {
        let mut stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        if is_stalled {
            stalled.insert(instance.clone());
        } else if !stalled.is_empty() {
            stalled.remove(instance);
        }
    }

    /// Forgets instances, which other nodes own now; any that stay and keep failing are noted again at their next turn.
    pub(crate) fn forget_instances(&self) {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.troubles.turns.clear();
    }

    /// Sets how many activities no worker can run.
    pub(crate) fn set_unserved(&self, count: usize) {
        self.unserved.store(count, Ordering::Relaxed);
    }

    /// Activities and instances that wait for code that nobody has.
    #[cfg(feature = "telemetry")]
    pub(crate) fn unserved_count(&self) -> usize {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner).len();
        stalled + self.unserved.load(Ordering::Relaxed)
    }

    /// The instance's code runs until the guard is dropped.
    pub(crate) fn decides<'a>(&'a self, instance: &'a InstanceId) -> Deciding<'a> {
        self.lock_deciding().insert(instance.clone(), Instant::now());
        Deciding { problems: self, instance }
    }

    /// Instances whose code has run for at least this long without coming back, and for how long.
    pub(crate) fn deciding_for(&self, least: Duration) -> Vec<(InstanceId, Duration)> {
        let deciding = self.lock_deciding();
        let ages = deciding.iter().map(|(instance, since)| (instance.clone(), since.elapsed()));
        ages.filter(|(_, age)| *age >= least).collect()
    }

    fn lock_damaged(&self) -> MutexGuard<'_, BTreeMap<InstanceId, (String, Millis)>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_deciding(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Instant>> {
        self.deciding.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
