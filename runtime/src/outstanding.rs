//! Activities that this node has handed to the broker, until their outcome is in a history.
//!
//! A broker that many processes share may lose them. Handing out again is harmless: a broker that still has an item refuses
//! the second one. So nothing has to be known about what was lost; after a while everything is offered again, the longer it
//! has been outstanding the more rarely.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outlast_core::{
    ActivityItem, ActivityKey, AppErrorKind, ErrorDetails, EventKind, ExecutionId, HistoryEvent, InstanceId, Millis,
    ShardId, WorkerId,
};

use crate::dispatch::lighten;
use crate::node::Node;
use crate::observability::RUNTIME;

/// How often what is outstanding is looked through.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often is looked for what nobody has begun in time.
const LATE_EVERY: Duration = Duration::from_millis(100);
/// When an item is offered again for the first time.
const FIRST_OFFER: Duration = Duration::from_secs(8);
/// Longest time between two offers.
const OFFER_MAX: Duration = Duration::from_secs(300);
/// Items that are offered in one publish.
const OFFERS: usize = 1_000;
/// A larger input is not kept here; the worker reads it from the history.
const KEPT_INPUT_BYTES_MAX: usize = 1_024;

/// What was handed out, and when it is offered again.
#[derive(Default)]
pub(crate) struct Outstanding {
    items: Mutex<Items>,
}

#[derive(Default)]
struct Items {
    entries: HashMap<ActivityKey, Entry>,
    /// Each entry's `begin_by`, soonest first.
    deadlines: BTreeSet<(Instant, ActivityKey)>,
}

struct Entry {
    item: ActivityItem,
    shard: ShardId,
    worker: Option<WorkerId>,
    since: Instant,
    /// When it is given up unless a worker has begun it.
    begin_by: Option<Instant>,
    offer_at: Instant,
    pause: Duration,
}

impl Items {
    fn remove(&mut self, key: &ActivityKey) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.drop_deadline(key, entry.begin_by);
        Some(entry)
    }

    fn drop_deadline(&mut self, key: &ActivityKey, begin_by: Option<Instant>) {
        if let Some(at) = begin_by {
            self.deadlines.remove(&(at, key.clone()));
        }
    }
}

impl Outstanding {
    /// Notes what is handed out.
    pub(crate) fn add(&self, item: &ActivityItem, (shard, time): (ShardId, Millis)) {
        let item = lighten(item, KEPT_INPUT_BYTES_MAX);
        let (now, mut items) = (Instant::now(), self.lock());
        let known = items.entries.get(&item.key);
        let since = known.map_or(now, |entry| entry.since);
        let limit = item.timeouts.get_schedule_to_start();
        // Counted from its scheduling, also by an owner that takes over.
        let waited = Duration::from_millis(time.0.saturating_sub(item.scheduled_at.0));
        let begin_by =
            known.map_or_else(|| limit.map(|limit| now + limit.saturating_sub(waited)), |entry| entry.begin_by);
        if let Some(at) = begin_by {
            items.deadlines.insert((at, item.key.clone()));
        }
        let entry =
            Entry { shard, worker: None, since, begin_by, offer_at: now + FIRST_OFFER, pause: FIRST_OFFER, item };
        items.entries.insert(entry.item.key.clone(), entry);
    }

    /// A worker had no use for it: it is handed out again after `delay`, not sooner.
    pub(crate) fn postpone(&self, key: &ActivityKey, delay: Duration) {
        if let Some(entry) = self.lock().entries.get_mut(key) {
            entry.offer_at = Instant::now() + delay + FIRST_OFFER;
        }
    }

    /// A worker has begun it.
    pub(crate) fn begun(&self, key: &ActivityKey) {
        let mut items = self.lock();
        let begin_by = items.entries.get_mut(key).and_then(|entry| entry.begin_by.take());
        items.drop_deadline(key, begin_by);
    }

    /// Takes out what nobody has begun in time.
    fn take_late(&self) -> Vec<ActivityItem> {
        let (now, mut items) = (Instant::now(), self.lock());
        let mut late = Vec::new();
        while items.deadlines.first().is_some_and(|(at, _)| *at <= now) {
            let due = items.deadlines.pop_first();
            late.extend(due.and_then(|(_, key)| items.entries.remove(&key)).map(|entry| entry.item));
        }
        late
    }

    /// Shows each item and since when it is outstanding.
    pub(crate) fn each_since(&self, mut show: impl FnMut(&ActivityItem, Instant)) {
        self.lock().entries.values().for_each(|entry| show(&entry.item, entry.since));
    }

    /// An item goes to the worker that holds its session.
    pub(crate) fn brought_to(&self, key: &ActivityKey, worker: Option<&WorkerId>) {
        if let Some(entry) = self.lock().entries.get_mut(key) {
            entry.worker = worker.cloned();
        }
    }

    /// Nothing is outstanding for these any more.
    pub(crate) fn remove(&self, keys: &[ActivityKey]) {
        if keys.is_empty() {
            return;
        }
        let mut items = self.lock();
        for key in keys {
            items.remove(key);
        }
    }

    /// Another node looks after these shards now.
    pub(crate) fn forget(&self, shards: &[ShardId]) {
        let mut items = self.lock();
        let Items { entries, deadlines } = &mut *items;
        entries.retain(|_, entry| !shards.contains(&entry.shard));
        deadlines.retain(|(_, key)| entries.contains_key(key));
    }

    pub(crate) fn clear(&self) {
        *self.lock() = Items::default();
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whatever matches is offered at the next look.
    fn hurry(&self, matches: impl Fn(&Entry) -> bool) {
        let now = Instant::now();
        for entry in self.lock().entries.values_mut().filter(|entry| matches(entry)) {
            entry.offer_at = now;
            entry.pause = FIRST_OFFER / 2;
        }
    }

    /// Takes note of an offer of all that is due, and returns it.
    fn due(&self) -> Vec<ActivityItem> {
        let now = Instant::now();
        let mut items = self.lock();
        let due = items.entries.values_mut().filter(|entry| entry.offer_at <= now);
        due.map(|entry| {
            entry.pause = (entry.pause * 2).min(OFFER_MAX);
            entry.offer_at = now + entry.pause;
            entry.item.clone()
        })
        .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Items> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The activities whose outcomes are among these events.
pub(crate) fn outcomes(instance: &InstanceId, events: &[(ExecutionId, HistoryEvent)]) -> Vec<ActivityKey> {
    let outcomes = events.iter().filter(|(_, event)| {
        matches!(event.kind, EventKind::ActivityCompleted { .. } | EventKind::ActivityFailed { .. })
    });
    let key = |(execution, event): &(ExecutionId, HistoryEvent)| {
        Some(ActivityKey { instance: instance.clone(), execution: *execution, event: event.source_event_id? })
    };
    outcomes.filter_map(key).collect()
}

impl Node {
    /// Workers that others see no more: what was brought to them alone is handed out again.
    pub(crate) async fn bury(&self, workers: &[WorkerId]) {
        for worker in workers {
            tracing::warn!(target: RUNTIME, %worker, "a worker is gone, its work is handed out again");
            self.broker.forget_worker(worker).await;
        }
        self.outstanding.hurry(|entry| entry.worker.as_ref().is_some_and(|worker| workers.contains(worker)));
    }
}

/// Offers what is outstanding again: after a loss at once, otherwise after a while.
pub(crate) async fn offer_again(node: Arc<Node>) {
    let mut losses = node.broker.losses();
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut told = true;
    loop {
        tokio::select! {
            _ = look.tick() => {}
            changed = losses.changed(), if told => {
                told = changed.is_ok();
                if told {
                    let count = node.outstanding.len();
                    tracing::warn!(target: RUNTIME, count, "the broker may have lost work, all that is outstanding is offered again");
                    node.outstanding.hurry(|_| true);
                }
            }
            () = node.stopping.cancelled() => return,
        }
        for items in node.outstanding.due().chunks(OFFERS) {
            if let Err(error) = node.publish(items).await {
                tracing::warn!(target: RUNTIME, %error, count = items.len(), "activities were not offered again");
                break;
            }
            crate::meter::redispatched(items);
        }
    }
}

/// Ends activities that no worker has begun in time.
pub(crate) async fn end_late(node: Arc<Node>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LATE_EVERY) => {}
            () = node.stopping.cancelled() => return,
        }
        for item in node.outstanding.take_late() {
            let limit = item.timeouts.get_schedule_to_start().unwrap_or_default();
            let message = format!("timeout: no worker has begun the activity within {limit:?} (schedule_to_start)");
            let details = ErrorDetails::application(AppErrorKind::ActivityFailed, message);
            node.settle_activity(&item.key, item.token, Err(details));
            if let Err(error) = node.broker.cancel(&item.key).await {
                tracing::warn!(target: RUNTIME, %error, "a cancellation was not sent");
            }
        }
    }
}
