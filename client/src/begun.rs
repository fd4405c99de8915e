//! Instances that this client has just started, with their news: a wait for one of them has missed nothing and reads nothing.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use outlast_broker::StatusWatch;
use outlast_core::InstanceId;

/// After this a wait looks into the store first: the id may stand for another life by now.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// Instances that are kept; the oldest go first.
const KEPT_MAX: usize = 1_024;

/// The newest instances of a client.
pub(crate) struct Begun {
    kept: Mutex<LruCache<InstanceId, (StatusWatch, Instant)>>,
}

impl Default for Begun {
    fn default() -> Self {
        Self { kept: Mutex::new(LruCache::unbounded()) }
    }
}

impl Begun {
    /// Keeps the news of an instance that was just started; they were subscribed to before it was.
    pub(crate) fn note(&self, instance: InstanceId, news: StatusWatch) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.put(instance, (news, Instant::now()));
        while kept.len() > KEPT_MAX || kept.peek_lru().is_some_and(|(_, (_, since))| since.elapsed() > KEPT_FOR) {
            kept.pop_lru();
        }
    }

    /// Forgets all: some may have been deleted.
    pub(crate) fn clear(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// All news since the start of an instance, if it was started here and just now.
    pub(crate) fn take(&self, instance: &InstanceId) -> Option<StatusWatch> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (news, since) = kept.pop(instance)?;
        (since.elapsed() <= KEPT_FOR).then_some(news)
    }
}
