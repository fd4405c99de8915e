//! Heartbeats: an activity reports its progress, and the next attempt can read it on any worker.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use outlast_core::ActivityItem;
use outlast_storage::{HeartbeatOf, Store};
use tokio::time::Instant;

use crate::RuntimeOptions;
use crate::telemetry::logging::RUNTIME;

/// Details are stored at most this often; the last ones of a failed attempt always are. A tight loop that reports its progress
/// must not become the store's main work.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// The heartbeat of one attempt.
pub(crate) struct Heartbeat {
    state: Mutex<State>,
    store: Arc<dyn Store>,
    options: Arc<RuntimeOptions>,
    /// An attempt before this one may have stored details, or still store them.
    is_repeated: bool,
    /// Details are on their way to the store.
    is_saving: AtomicBool,
}

struct State {
    details: Option<String>,
    beaten: Instant,
    saved: bool,
}

impl Heartbeat {
    /// Begins with the details of an earlier attempt, if there may be any.
    pub(crate) async fn begin(
        store: Arc<dyn Store>,
        options: Arc<RuntimeOptions>,
        item: &ActivityItem,
        redelivered: bool,
    ) -> Self {
        let (mut details, is_repeated) = (None, redelivered || item.attempt > 1);
        if is_repeated {
            match store.heartbeat(&item.key.instance, &item.idempotency_key()).await {
                Ok(found) => details = found,
                Err(error) => {
                    tracing::warn!(target: RUNTIME, activity = %item.name, %error, "the last heartbeat was not read");
                }
            }
        }
        let state = Mutex::new(State { details, beaten: Instant::now(), saved: true });
        Self { state, store, options, is_repeated, is_saving: AtomicBool::new(false) }
    }

    pub(crate) fn beat(&self, details: String) {
        let details = self.options.limits.cut_heartbeat(details);
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

    /// Returns when there was no heartbeat for `limit`.
    pub(crate) async fn silent_for(&self, limit: Duration) {
        loop {
            let until = self.lock().beaten + limit;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// Runs `code`, and stores new details from time to time meanwhile. Waits for a save under way when `code` ends: details must
    /// not arrive after the outcome, whose turn deletes them.
    pub(crate) async fn keep_while<T>(&self, item: &ActivityItem, code: impl Future<Output = T>) -> T {
        let keep = async {
            loop {
                tokio::time::sleep(SAVE_EVERY).await;
                self.save(item).await;
            }
        };
        let (code, mut keep) = (pin!(code), pin!(keep));
        let ended = tokio::select! {
            biased;
            ended = code => ended,
            () = &mut keep => unreachable!("details are kept for ever"),
        };
        poll_fn(|cx| {
            if self.is_saving.load(Ordering::Relaxed) {
                let _goes_on = keep.as_mut().poll(cx);
            }
            if self.is_saving.load(Ordering::Relaxed) { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        ended
    }

    /// Whether details may be stored, by this attempt or by another one that may still run.
    pub(crate) fn may_be_stored(&self) -> bool {
        self.is_repeated || self.lock().details.is_some()
    }

    /// Stores new details, if there are any.
    pub(crate) async fn save(&self, item: &ActivityItem) {
        let details = {
            let mut state = self.lock();
            // Set before the call: a beat that comes meanwhile clears it and is stored next time.
            if std::mem::replace(&mut state.saved, true) { None } else { state.details.clone() }
        };
        let Some(details) = details else { return };
        let name = item.idempotency_key();
        let of = HeartbeatOf { key: &item.key, scheduled_at: item.scheduled_at, activity: &name };
        self.is_saving.store(true, Ordering::Relaxed);
        if let Err(error) = self.store.save_heartbeat(of, details).await {
            self.lock().saved = false;
            tracing::warn!(target: RUNTIME, activity = %item.name, %error, "a heartbeat was not stored");
        }
        self.is_saving.store(false, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
