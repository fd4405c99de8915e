//! Instances that this client has just started, with their status updates: a wait for one of them has missed no update and need
//! not read the store first.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use outlast_broker::StatusWatch;
use outlast_core::{InstanceId, MessageId};
use tokio::time::Instant;

/// After this long, a wait looks into the store first: the id may have begun another life.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// Most instances kept; the oldest go first. What has gone costs a wait one look into the store.
const KEPT_MAX: usize = 1_024;

/// The newest instances of a client.
pub(crate) struct JustStarted {
    kept: Mutex<LruCache<InstanceId, (Started, Instant)>>,
}

/// What a client knows of an instance that it has started.
pub(crate) struct Started {
    /// The start message, which tells its updates from those of an earlier life of the id.
    pub(crate) by: MessageId,
    /// Its updates, subscribed to before it was started.
    pub(crate) updates: StatusWatch,
}

impl Default for JustStarted {
    fn default() -> Self {
        Self { kept: Mutex::new(LruCache::unbounded()) }
    }
}

impl JustStarted {
    /// Keeps the updates of an instance that was just started.
    pub(crate) fn note(&self, instance: InstanceId, started: Started) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.put(instance, (started, Instant::now()));
        while kept.len() > KEPT_MAX || kept.peek_lru().is_some_and(|(_, (_, since))| since.elapsed() > KEPT_FOR) {
            kept.pop_lru();
        }
    }

    /// Forgets all: some may have been deleted.
    pub(crate) fn clear(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Takes the updates of an instance that was just started here; they go back to before its start.
    pub(crate) fn take(&self, instance: &InstanceId) -> Option<Started> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (started, since) = kept.pop(instance)?;
        (since.elapsed() <= KEPT_FOR).then_some(started)
    }
}
