//! Carrying out what a committed turn decided.

pub(crate) mod outstanding;

use std::sync::Arc;
use std::time::Duration;

use outlast_broker::Dispatch;
use outlast_core::{
    ActivityItem, ActivityKey, ActivityRef, Effect, ErrorDetails, ExecutionId, InstanceId, KV_READ_ACTIVITY, LogLevel,
    LogLine, Message, MessageId, MessageKind, Token,
};
use tokio::sync::oneshot;

use crate::dispatch::outstanding::Place;
use crate::node::Node;
use crate::node::supervision::NodeTask;
use crate::problems::lasting::Refusal;
use crate::problems::notices::no_worker_has;
use crate::telemetry::counters::Counters;
use crate::telemetry::logging::{ACTIVITY, ORCHESTRATION, RUNTIME};

/// Pause before activities are published again.
const PUBLISH_AGAIN: Duration = Duration::from_secs(1);
/// Pause before the store is asked again.
const STORE_AGAIN: Duration = Duration::from_millis(200);

/// 64 random bits: the hash of nothing under keys that the standard library draws from the system.
pub(crate) fn random_bits() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Why activities were not handed out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error(transparent)]
    Store(#[from] outlast_storage::Error),
    #[error(transparent)]
    Broker(#[from] outlast_broker::Error),
}

/// The item without a large input, which stays in the history.
pub(crate) fn strip_input(item: &ActivityItem, payload_bytes_max: usize) -> ActivityItem {
    if item.input.len() <= payload_bytes_max {
        return item.clone();
    }
    ActivityItem { input: String::new(), input_stored: true, ..item.clone() }
}

/// The id under which an activity's result travels.
pub(crate) fn result_id(key: &ActivityKey, token: Token) -> MessageId {
    MessageId::new(format!("activity:{}:{}:{:016x}", key.execution, key.event, token.0))
}

/// What a committed turn shows to the world, and whose it is.
pub(crate) struct Shown {
    pub(crate) instance: InstanceId,
    pub(crate) place: Place,
    pub(crate) execution: ExecutionId,
    pub(crate) orchestration: String,
    pub(crate) logs: Vec<LogLine>,
    pub(crate) effects: Vec<Effect>,
}

impl Node {
    /// Shows a committed turn to the world: log lines, cancellations, activities.
    pub(crate) async fn apply_effects(self: &Arc<Self>, mut shown: Shown) {
        for line in std::mem::take(&mut shown.logs) {
            log(&shown, line);
        }
        let (mut items, mut to_stop) = (Vec::new(), Vec::new());
        for effect in shown.effects {
            match effect {
                Effect::Dispatch(item) => items.push(*item),
                Effect::CancelActivity(key) => to_stop.extend(self.outstanding.cancel(&key)),
            }
        }
        self.stop_activities(to_stop).await;
        if !items.is_empty() {
            crate::telemetry::metrics::dispatched(&items);
            self.dispatch(items, shown.place, false).await;
        }
    }

    /// Hands activities to the broker, as far as it has room for them; `again` when they may have been run since they were
    /// handed out before.
    pub(crate) async fn dispatch(self: &Arc<Self>, mut items: Vec<ActivityItem>, place: Place, again: bool) {
        for item in items.extract_if(.., |item| item.name == KV_READ_ACTIVITY) {
            self.read_kv(item);
        }
        if items.is_empty() {
            return;
        }
        self.counters.dispatched.fetch_add(items.len() as u64, std::sync::atomic::Ordering::Relaxed);
        let admitted = self.outstanding.admit(items, (place, self.store.now()), again);
        if !admitted.is_empty() {
            self.hand_out(admitted, again).await;
        }
    }

    /// Gives the broker what has room there, trying until it takes it.
    pub(crate) async fn hand_out(self: &Arc<Self>, items: Vec<ActivityItem>, again: bool) {
        let count = items.len();
        let Err(error) = self.publish(&items, again).await else { return };
        tracing::warn!(target: RUNTIME, %error, count, "activities were not published, trying again");
        let items = Arc::new(items);
        self.until_done(move |node| {
            let items = Arc::clone(&items);
            async move {
                while !node.stopping.is_cancelled() && node.publish(&items, true).await.is_err() {
                    tokio::time::sleep(PUBLISH_AGAIN).await;
                }
            }
        });
    }

    /// Does something beside the caller, anew after a panic: nobody else knows that it is to be done.
    fn until_done<F>(self: &Arc<Self>, work: impl Fn(Arc<Self>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (node, done) = (Arc::clone(self), self.stopping.child_token());
        let asked = done.clone();
        tokio::spawn(Arc::clone(&self.supervisor).keep(NodeTask::Dispatch, asked, move || {
            let (work, done) = (work(Arc::clone(&node)), done.clone());
            async move {
                work.await;
                done.cancel();
            }
        }));
    }

    /// Brings activities to the broker; notes when it does not take them.
    pub(crate) async fn publish(&self, items: &[ActivityItem], again: bool) -> Result<(), PublishError> {
        let published = self.try_publish(items, again).await;
        match (&published, items.first()) {
            (Ok(()), _) => self.troubles.broker.end(&()),
            (Err(error), Some(first)) => {
                self.troubles.broker.note((), Refusal { reason: error.to_string(), first: first.clone() });
            }
            (Err(_), None) => {}
        }
        published
    }

    async fn try_publish(&self, items: &[ActivityItem], again: bool) -> Result<(), PublishError> {
        let max = self.broker.payload_bytes_max();
        let mut dispatches: Vec<Dispatch> =
            items.iter().map(|item| Dispatch { item: strip_input(item, max), worker: None, again }).collect();
        let sessions: Vec<String> = items.iter().filter_map(|item| item.session_id.clone()).collect();
        if !sessions.is_empty() {
            let owners = self.store.session_owners(&sessions).await?;
            let bound = dispatches.iter_mut().filter(|dispatch| dispatch.item.session_id.is_some());
            for (dispatch, owner) in bound.zip(owners) {
                self.outstanding.brought_to(&dispatch.item.key, owner.as_ref());
                dispatch.worker = owner;
            }
        }
        Ok(self.broker.publish(dispatches).await?)
    }

    /// Reads another instance's value for an orchestration and brings it back as the activity's result.
    fn read_kv(self: &Arc<Self>, item: ActivityItem) {
        let (item, reading) = (Arc::new(item), self.reads.begin());
        self.until_done(move |node| {
            let (item, reading) = (Arc::clone(&item), reading.clone());
            async move {
                let _reading = reading;
                let Ok((instance, key)) = serde_json::from_str::<(String, String)>(&item.input) else { return };
                let value = loop {
                    match node.store.kv(&InstanceId::new(&instance), Some(&key)).await {
                        Ok(entries) => break entries.into_iter().next().map(|entry| entry.value),
                        Err(_) if node.stopping.is_cancelled() => return,
                        Err(_) => tokio::time::sleep(STORE_AGAIN).await,
                    }
                };
                let result = serde_json::to_string(&value).expect("an optional text is JSON");
                node.settle_activity(&item.key, item.token, Ok(result));
            }
        });
    }

    /// Gives an activity an outcome that no worker produced.
    pub(crate) fn settle_activity(
        self: &Arc<Self>,
        key: &ActivityKey,
        token: Token,
        outcome: Result<String, ErrorDetails>,
    ) {
        let kind = MessageKind::ActivityDone { execution: key.execution, event: key.event, token, outcome, run: None };
        let message = Message { id: result_id(key, token), kind };
        let (answer, answered) = oneshot::channel();
        self.deliver_direct(&key.instance, message, answer);
        // If the turn fails, hydration hands the activity out again, so the answer is of no interest.
        drop(answered);
    }

    /// A worker has run it, or nobody wants it: should it come back, the tries count anew.
    pub(crate) fn registered(&self, activity: &ActivityRef) {
        let mut tries = self.unregistered.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !tries.is_empty() {
            tries.remove(activity);
        }
    }

    /// A worker has no handler of this name: try again later, give up after so many times.
    pub(crate) fn retry_unregistered(self: &Arc<Self>, activity: ActivityRef, name: String) {
        // A worker that lacks it says so; while another one has it, that is no reason to give up.
        let served = self.workers().iter().any(|worker| worker.activities.contains(&name));
        let tries = {
            let mut tries = self.unregistered.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let count = tries.entry(activity.clone()).or_insert(0);
            *count += 1;
            *count
        };
        if tries >= self.options.max_attempts && !served {
            Counters::count(&self.counters.activity_poison);
            self.registered(&activity);
            let details = ErrorDetails::Poison {
                attempt_count: tries,
                max_attempts: self.options.max_attempts,
                message_type: format!("activity {name}"),
                message: "no worker has registered it: register it, or check its name and tag".to_owned(),
            };
            return self.settle_activity(&activity.key, activity.token, Err(details));
        }
        let delay = self.options.unregistered_backoff.delay(tries);
        let missing = no_worker_has(&name);
        if !served && self.notices.is_due(&missing) {
            tracing::warn!(
                target: ACTIVITY, instance = %activity.key.instance, tries,
                "{missing}: register it, or check its name; instances wait for it and fail after {} tries",
                self.options.max_attempts
            );
        }
        self.outstanding.postpone(&activity.key, delay);
        self.until_done(move |node| {
            let activity = activity.clone();
            async move {
                tokio::time::sleep(delay).await;
                match node.outstanding.find(&activity) {
                    Some(item) => {
                        node.counters.dispatched.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        node.hand_out(vec![item], true).await;
                    }
                    // Not wanted any more, or another node looks after it.
                    None => node.registered(&activity),
                }
            }
        });
    }
}

fn log(shown: &Shown, line: LogLine) {
    macro_rules! at {
        ($level:ident) => {
            tracing::$level!(
                target: ORCHESTRATION,
                instance = %shown.instance,
                execution = shown.execution.0,
                orchestration = %shown.orchestration,
                "{}", line.text
            )
        };
    }
    match line.level {
        LogLevel::Debug => at!(debug),
        LogLevel::Info => at!(info),
        LogLevel::Warn => at!(warn),
        LogLevel::Error => at!(error),
    }
}
