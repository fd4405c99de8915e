//! Whether the stream of work takes what it is offered, as the answers to publishes say.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::connection::Link;

/// When offered work is not taken for this long, a trial of the stream is due: as long as one publish may take by itself.
const REFUSED_MAX: Duration = Duration::from_secs(5);
/// Shortest time between two trials: a trial that fails has the stream made anew, which must show its effect first.
const TRIAL_EVERY: Duration = Duration::from_secs(2);

/// Whether the stream of work takes what it is offered.
#[derive(Default)]
pub(crate) struct Uptake {
    /// Messages that it has acknowledged to this process.
    pub(crate) acknowledged: AtomicU64,
    /// Whether `refused` has something to say.
    pub(crate) is_refused: AtomicBool,
    refused: Mutex<Refused>,
}

#[derive(Default)]
pub(crate) struct Refused {
    /// Since when it has taken nothing of what was offered.
    pub(crate) since: Option<Instant>,
    tried: Option<Instant>,
}

/// An attempt to publish work.
#[derive(Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) begun: Instant,
    pub(crate) acknowledged: u64,
    pub(crate) link: Link,
}

impl Uptake {
    /// The stream has acknowledged something.
    pub(crate) fn taken(&self) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        if self.is_refused.load(Ordering::Relaxed) {
            self.clear();
        }
    }

    pub(crate) fn clear(&self) {
        let mut refused = self.lock();
        self.is_refused.store(false, Ordering::Relaxed);
        refused.since = None;
    }

    /// Whether it has taken nothing for so long that it is time for a trial.
    pub(crate) fn is_due(&self) -> bool {
        let mut refused = self.lock();
        let long = refused.since.is_some_and(|since| since.elapsed() >= REFUSED_MAX);
        let due = long && refused.tried.is_none_or(|tried| tried.elapsed() >= TRIAL_EVERY);
        if due {
            refused.tried = Some(Instant::now());
        }
        due
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Refused> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
