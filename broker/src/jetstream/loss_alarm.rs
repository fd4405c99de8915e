//! The alarm that work may be lost: owners then hand out again what has no outcome. A needless alarm costs a look into the store,
//! as a second copy of what is queued is refused.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Shortest time between two alarms: each has everything outstanding offered again, which takes seconds when that is much.
const ALARM_EVERY: Duration = Duration::from_secs(5);

/// The alarm, and whether the stream was looked at since the connection was made.
pub(crate) struct LossAlarm {
    alarms: watch::Sender<u64>,
    /// Something may be lost, and nobody was told yet.
    pub(crate) due: AtomicBool,
    rung: Mutex<Option<Instant>>,
    pub(crate) look: Notify,
    /// Which connection the last look was made on.
    pub(crate) checked: watch::Sender<u64>,
    /// Rises when sequences of the stream begin anew.
    pub(crate) incarnation: AtomicU64,
}

impl Default for LossAlarm {
    fn default() -> Self {
        Self {
            alarms: watch::Sender::new(0),
            due: AtomicBool::new(false),
            rung: Mutex::default(),
            look: Notify::new(),
            checked: watch::Sender::new(0),
            incarnation: AtomicU64::new(0),
        }
    }
}

impl LossAlarm {
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.alarms.subscribe()
    }

    /// Which life of the stream this is. An answer about a message of an earlier one must not be sent: its sequence may
    /// be another message's now.
    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Acquire)
    }

    /// Have the stream looked at now.
    pub(crate) fn look_now(&self) {
        self.look.notify_one();
    }

    pub(crate) fn alarm(&self, why: &str) {
        tracing::warn!(target: super::LOG, "work may be lost: {why}");
        self.due.store(true, Ordering::Release);
    }

    pub(crate) fn ring_if_due(&self) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let early = rung.is_some_and(|rung| rung.elapsed() < ALARM_EVERY);
        if !early && self.due.swap(false, Ordering::AcqRel) {
            *rung = Some(Instant::now());
            self.alarms.send_modify(|alarms| *alarms += 1);
        }
    }
}
