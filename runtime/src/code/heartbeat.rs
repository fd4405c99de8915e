//! What an activity says about how far it is; the next attempt can read it, on whichever worker it runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outlast_core::{ActivityItem, ActivityKey, Limits, Millis};
use outlast_storage::{HeartbeatOf, Store};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::telemetry::logging::RUNTIME;

/// Details are stored at most so often; the last ones of a failed attempt always are.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// The words of one attempt.
pub(crate) struct Heartbeat {
    state: Mutex<State>,
    store: Arc<dyn Store>,
    limits: Limits,
    /// The scheduling event of this attempt, and when it was made.
    key: ActivityKey,
    scheduled_at: Millis,
    /// The same in all attempts: under it details are stored.
    idempotency_key: String,
    activity: String,
    /// An attempt before this one may have stored details, or still store them.
    is_repeated: bool,
}

struct State {
    details: Option<String>,
    beaten: Instant,
    saved: bool,
}

impl Heartbeat {
    /// Begins with what an earlier attempt said, if there can be one.
    pub(crate) async fn begin(store: Arc<dyn Store>, limits: Limits, item: &ActivityItem, redelivered: bool) -> Self {
        let (idempotency_key, is_repeated) = (item.idempotency_key(), redelivered || item.attempt > 1);
        let mut details = None;
        if is_repeated {
            match store.heartbeat(&item.key.instance, &idempotency_key).await {
                Ok(found) => details = found,
                Err(error) => {
                    tracing::warn!(target: RUNTIME, activity = %item.name, %error, "the last heartbeat was not read");
                }
            }
        }
        let state = Mutex::new(State { details, beaten: Instant::now(), saved: true });
        let (key, scheduled_at, activity) = (item.key.clone(), item.scheduled_at, item.name.clone());
        Self { state, store, limits, key, scheduled_at, idempotency_key, activity, is_repeated }
    }

    pub(crate) fn beat(&self, details: String) {
        let details = self.limits.cut_heartbeat(details);
        let mut state = self.lock();
        if state.details.as_ref() != Some(&details) {
            state.details = Some(details);
            state.saved = false;
        }
        state.beaten = Instant::now();
    }

    pub(crate) fn details(&self) -> Option<String> {
        self.lock().details.clone()
    }

    /// Returns when there was no heartbeat for so long.
    pub(crate) async fn silent_for(&self, limit: Duration) {
        loop {
            let until = self.lock().beaten + limit;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// Stores new details now and then, until `ended`. One that is being stored then is waited for: it must not arrive behind
    /// the outcome, whose turn takes it away.
    pub(crate) async fn keep(&self, ended: CancellationToken) {
        while ended.run_until_cancelled(tokio::time::sleep(SAVE_EVERY)).await.is_some() {
            self.save().await;
        }
    }

    /// Whether something of the activity may be stored, by this attempt or by another one that may still run.
    pub(crate) fn may_be_stored(&self) -> bool {
        self.is_repeated || self.lock().details.is_some()
    }

    /// Stores new details, if there are any.
    pub(crate) async fn save(&self) {
        let details = {
            let mut state = self.lock();
            if std::mem::replace(&mut state.saved, true) { None } else { state.details.clone() }
        };
        let Some(details) = details else { return };
        let Self { key, scheduled_at, idempotency_key, .. } = self;
        let of = HeartbeatOf { key, scheduled_at: *scheduled_at, activity: idempotency_key };
        if let Err(error) = self.store.save_heartbeat(of, details).await {
            self.lock().saved = false;
            tracing::warn!(target: RUNTIME, activity = %self.activity, %error, "a heartbeat was not stored");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
