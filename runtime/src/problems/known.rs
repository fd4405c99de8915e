//! What the parts of a node have noticed of instances that stand still: damaged ones, those whose code nobody has, code that does
//! not come back, and whatever goes wrong and lasts. `report` looks at it every two seconds; a healthy turn pays for it with looks
//! at flags and one entry among those that are being decided.

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
    /// What goes wrong and lasts; the worker notes some of it.
    pub(crate) troubles: Arc<Troubles>,
    /// What was written to the log lately.
    pub(crate) notices: Notices,
    /// Instances that cannot be read or written, with the reason and since when.
    damaged: Mutex<BTreeMap<InstanceId, (String, Millis)>>,
    /// Instances whose orchestration no node has.
    stalled: Mutex<BTreeSet<InstanceId>>,
    /// Activities that wait for a worker that nobody is, when it was last looked.
    unserved: AtomicUsize,
    /// Instances whose code is being run right now, and since when.
    deciding: Mutex<BTreeMap<InstanceId, Instant>>,
}

/// Says that an instance's code runs, until it is dropped.
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
    /// An instance cannot be read or written since `now`, or since it was first said.
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

    /// Whether the turn of an instance could not begin, as nobody has its code.
    pub(crate) fn note_stalled(&self, instance: &InstanceId, is_stalled: bool) {
        let mut stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        if is_stalled {
            stalled.insert(instance.clone());
        } else if !stalled.is_empty() {
            stalled.remove(instance);
        }
    }

    /// Other nodes look after these instances now; what stays here and goes on failing is noted again at its next turn.
    pub(crate) fn forget_instances(&self) {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.troubles.turns.clear();
    }

    /// So many activities wait for a worker that nobody is.
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
