//! Activities that no worker has registered: tried at growing intervals, and failed after `max_attempts`.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use outlast_core::{ActivityRef, ErrorDetails};

use crate::dispatch::Dispatcher;
use crate::problems::notices::no_worker_has;
use crate::telemetry::counters::Counters;
use crate::telemetry::logging::ACTIVITY;

impl Dispatcher {
    /// A worker has run it, or it is not wanted: forgets its tries.
    pub(crate) fn registered(&self, activity: &ActivityRef) {
        let mut tries = self.lock_unregistered();
        if !tries.is_empty() {
            tries.remove(activity);
        }
    }

    /// A worker has no handler of this name: tries again later, and gives up after `max_attempts`.
    pub(crate) fn retry_unregistered(self: &Arc<Self>, activity: ActivityRef, name: String) {
        // One worker lacks it; as long as another one has it, that is no reason to give up.
        let served = self.parts.neighbours.workers().iter().any(|worker| worker.activities.contains(&name));
        let tries = {
            let mut tries = self.lock_unregistered();
            let count = tries.entry(activity.clone()).or_insert(0);
            *count += 1;
            *count
        };
        if tries >= self.parts.options.max_attempts && !served {
            Counters::count(&self.parts.counters.activity_poison);
            self.registered(&activity);
            let details = ErrorDetails::Poison {
                attempt_count: tries,
                max_attempts: self.parts.options.max_attempts,
                message_type: format!("activity {name}"),
                message: "no worker has registered it: register it, or check its name and tag".to_owned(),
            };
            return self.complete(&activity.key, activity.token, Err(details));
        }
        let delay = self.parts.options.unregistered_backoff.delay(tries);
        let missing = no_worker_has(&name);
        if !served && self.parts.problems.notices.is_due(&missing) {
            tracing::warn!(
                target: ACTIVITY, instance = %activity.key.instance, tries,
                "{missing}: register it, or check its name; instances wait for it and fail after {} tries",
                self.parts.options.max_attempts
            );
        }
        self.outstanding.postpone(&activity.key, delay);
        self.until_done(move |dispatcher| {
            let activity = activity.clone();
            async move {
                tokio::time::sleep(delay).await;
                match dispatcher.outstanding.find(&activity) {
                    Some(item) => {
                        dispatcher.parts.counters.dispatched.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        dispatcher.hand_out(vec![item], true).await;
                    }
                    // Not wanted any more, or another node looks after it.
                    None => dispatcher.registered(&activity),
                }
            }
        });
    }

    pub(crate) fn lock_unregistered(&self) -> MutexGuard<'_, BTreeMap<ActivityRef, u32>> {
        self.unregistered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
