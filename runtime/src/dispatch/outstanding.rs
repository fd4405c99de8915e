//! Activities that this node has to hand to the broker, until their outcome is in a history.
//!
//! For each tag the broker holds at most a window of them; the rest waits here, and in the store, until some have ended.
//! A broker that many processes share may lose activities. Offering one again is harmless: a broker that still has it refuses
//! the copy. So nobody has to know what was lost: after a while everything is offered again, and more rarely the longer it
//! has been outstanding.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outlast_core::{
    ActivityItem, ActivityKey, ActivityRef, Epoch, EventId, EventKind, ExecutionId, HistoryEvent, InstanceId, Millis,
    ShardId, Token, WorkerId,
};
use tokio::sync::Notify;
use tokio::time::Instant;

/// When an item is offered again for the first time: quick activities have ended by then, and a lost one is back within ten
/// seconds.
const FIRST_OFFER: Duration = Duration::from_secs(8);
/// Longest time between two offers: an activity that runs for hours costs a request in five minutes.
const OFFER_MAX: Duration = Duration::from_secs(300);
/// When an offer that the broker has refused is made again: a stream is made anew in less.
const REFUSED_AGAIN: Duration = Duration::from_secs(2);
/// A larger input is not kept here; the worker reads it from the history. A full window of such inputs would be gigabytes.
const KEPT_INPUT_BYTES_MAX: usize = 1_024;

/// The item without a large input, which stays in the history.
pub(crate) fn strip_input(item: &ActivityItem, payload_bytes_max: usize) -> ActivityItem {
    if item.input.len() <= payload_bytes_max {
        return item.clone();
    }
    ActivityItem { input: String::new(), input_stored: true, ..item.clone() }
}

/// Activities without an outcome, and when each is offered again.
pub(crate) struct Outstanding {
    items: Mutex<Items>,
    /// A tag has room for more.
    room: Notify,
}

struct Items {
    window: usize,
    /// Ordered by instance, so that the activities of one lie together. Boxed, as the tree moves its values about.
    entries: BTreeMap<ActivityKey, Box<Entry>>,
    /// Given up, since no worker has begun them in time; until the history says so, they may still turn out to be wanted.
    late: BTreeMap<ActivityKey, Box<Entry>>,
    /// Each entry's `begin_by`, soonest first.
    deadlines: BTreeSet<(Instant, ActivityKey)>,
    tags: BTreeMap<Option<String>, Tag>,
}

/// The activities of one tag.
#[derive(Default)]
struct Tag {
    /// How many the broker has been given.
    given: usize,
    /// Keys that wait for room; some may have been removed since.
    waiting: VecDeque<ActivityKey>,
}

/// The shard and epoch by which this node looks after an activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) shard: ShardId,
    pub(crate) epoch: Epoch,
    /// The tenure's generation.
    pub(crate) generation: u64,
}

/// On what terms activities are taken in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) place: Place,
    /// The store's time.
    pub(crate) now: Millis,
    /// They may have been given to the broker before, and run.
    pub(crate) may_have_run: bool,
}

struct Entry {
    item: ActivityItem,
    place: Place,
    worker: Option<WorkerId>,
    since: Instant,
    /// When it is given up unless a worker has begun it.
    begin_by: Option<Instant>,
    /// The broker has not been given it yet.
    waits: bool,
    /// It may have run: a former owner may have given it to the broker.
    may_have_run: bool,
    offer_at: Instant,
    pause: Duration,
}

impl Items {
    fn new(window: usize) -> Self {
        let (entries, late) = (BTreeMap::new(), BTreeMap::new());
        Self { window: window.max(1), entries, late, deadlines: BTreeSet::new(), tags: BTreeMap::new() }
    }

    /// Takes one in; `true` when the broker may have it now.
    fn add(&mut self, item: &ActivityItem, terms: Terms) -> bool {
        let Terms { place, now: time, may_have_run } = terms;
        let now = Instant::now();
        self.late.remove(&item.key);
        if let Some(known) = self.entries.get_mut(&item.key).filter(|known| known.item.token == item.token) {
            (known.place, known.offer_at, known.pause) = (place, now + FIRST_OFFER, FIRST_OFFER);
            return !known.waits;
        }
        // An entry with another token is of an earlier life.
        self.remove(&item.key);
        let tag = self.tags.entry(item.tag.clone()).or_default();
        let waits = tag.given >= self.window;
        if waits {
            tag.waiting.push_back(item.key.clone());
        } else {
            tag.given += 1;
        }
        // The limit counts from the scheduling, also after a take-over.
        let waited = Duration::from_millis(time.0.saturating_sub(item.scheduled_at.0));
        let limit = item.timeouts.get_schedule_to_start();
        let begin_by = limit.map(|limit| now + limit.saturating_sub(waited));
        self.deadlines.extend(begin_by.map(|at| (at, item.key.clone())));
        let (offer_at, pause) = (now + FIRST_OFFER, FIRST_OFFER);
        let item = strip_input(item, KEPT_INPUT_BYTES_MAX);
        let entry = Entry { item, place, worker: None, since: now, begin_by, waits, may_have_run, offer_at, pause };
        self.entries.insert(entry.item.key.clone(), Box::new(entry));
        !waits
    }

    fn remove(&mut self, key: &ActivityKey) -> Option<Box<Entry>> {
        let entry = self.entries.remove(key)?;
        self.drop_deadline(key, entry.begin_by);
        if let Some(tag) = self.tags.get_mut(&entry.item.tag) {
            tag.given -= usize::from(!entry.waits);
            if tag.given == 0 && tag.waiting.is_empty() {
                self.tags.remove(&entry.item.tag);
            }
        }
        Some(entry)
    }

    fn drop_deadline(&mut self, key: &ActivityKey, begin_by: Option<Instant>) {
        if let Some(at) = begin_by {
            self.deadlines.remove(&(at, key.clone()));
        }
    }

    /// Whether a tag with waiting activities has an eighth of its window free, so that they are handed out in batches.
    fn has_room(&self) -> bool {
        let low = self.window - self.window.div_ceil(8);
        self.tags.values().any(|tag| tag.given <= low && !tag.waiting.is_empty())
    }

    /// Takes the waiting activities that have room now, each with whether it may have run.
    fn take_waiting(&mut self) -> Vec<(ActivityItem, bool)> {
        let now = Instant::now();
        let mut taken = Vec::new();
        self.tags.retain(|_, tag| {
            while tag.given < self.window
                && let Some(key) = tag.waiting.pop_front()
            {
                if let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.waits) {
                    (entry.waits, entry.offer_at) = (false, now + FIRST_OFFER);
                    tag.given += 1;
                    taken.push((entry.item.clone(), entry.may_have_run));
                }
            }
            tag.given > 0 || !tag.waiting.is_empty()
        });
        taken
    }

    /// Keeps the entries that match.
    fn retain(&mut self, matches: impl Fn(&Entry) -> bool) {
        let gone: Vec<ActivityKey> =
            self.entries.iter().filter(|(_, entry)| !matches(entry)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.remove(&key);
        }
        self.late.retain(|_, entry| matches(entry));
    }
}

impl Entry {
    /// The activity to stop when it is not wanted; `None` when no worker can have it.
    fn into_stop(self) -> Option<ActivityRef> {
        (!self.waits || self.may_have_run).then(|| self.item.activity())
    }
}

/// All keys of an instance.
fn keys_of(instance: &InstanceId) -> RangeInclusive<ActivityKey> {
    let key =
        |number| ActivityKey { instance: instance.clone(), execution: ExecutionId(number), event: EventId(number) };
    key(0)..=key(u64::MAX)
}

impl Outstanding {
    /// At most `window` items of a tag are with the broker at a time.
    pub(crate) fn new(window: usize) -> Self {
        Self { items: Mutex::new(Items::new(window)), room: Notify::new() }
    }

    /// Takes items in and returns those that the broker may have now; the others follow when there is room.
    pub(crate) fn admit(&self, mut new: Vec<ActivityItem>, terms: Terms) -> Vec<ActivityItem> {
        let mut items = self.lock();
        new.retain(|item| items.add(item, terms));
        new
    }

    /// The item, if it is still outstanding.
    pub(crate) fn find(&self, activity: &ActivityRef) -> Option<ActivityItem> {
        let items = self.lock();
        let entry = items.entries.get(&activity.key).filter(|entry| entry.item.token == activity.token);
        entry.map(|entry| entry.item.clone())
    }

    /// The places of these activities; `None` for one that is not outstanding here.
    pub(crate) fn places<'a>(&self, asked: impl Iterator<Item = &'a ActivityRef>) -> Vec<Option<Place>> {
        let items = self.lock();
        let place = |activity: &ActivityRef| {
            let entry = items.entries.get(&activity.key)?;
            (entry.item.token == activity.token).then_some(entry.place)
        };
        asked.map(place).collect()
    }

    /// A worker lacks its handler: it is handed out again after `delay`, not sooner.
    pub(crate) fn postpone(&self, key: &ActivityKey, delay: Duration) {
        if let Some(entry) = self.lock().entries.get_mut(key) {
            let soonest = Instant::now() + FIRST_OFFER;
            // A delay too long for an `Instant` counts as the longest pause between offers.
            entry.offer_at = soonest.checked_add(delay).unwrap_or(soonest + OFFER_MAX);
        }
    }

    /// A worker has begun it.
    pub(crate) fn begun(&self, ActivityRef { key, token }: &ActivityRef) {
        let mut items = self.lock();
        let entry = items.entries.get_mut(key).filter(|entry| entry.item.token == *token);
        let begin_by = entry.and_then(|entry| entry.begin_by.take());
        items.drop_deadline(key, begin_by);
    }

    /// Takes out activities that no worker has begun in time.
    pub(crate) fn take_late(&self) -> Vec<ActivityItem> {
        let (now, mut items) = (Instant::now(), self.lock());
        let mut late = Vec::new();
        while let Some((_, key)) = items.deadlines.first().filter(|(at, _)| *at <= now).cloned() {
            let Some(entry) = items.remove(&key) else { continue };
            late.push(entry.item.clone());
            items.late.insert(key, entry);
        }
        self.tell_room(&items);
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

    /// Removes activities whose outcome is committed. Returns those to stop: they were given up before any worker had begun them,
    /// and may have been begun since.
    pub(crate) fn remove(&self, keys: &[ActivityKey]) -> Vec<ActivityRef> {
        if keys.is_empty() {
            return Vec::new();
        }
        let mut items = self.lock();
        for key in keys {
            items.remove(key);
        }
        let late = keys.iter().filter_map(|key| items.late.remove(key)).filter_map(|entry| entry.into_stop()).collect();
        self.tell_room(&items);
        late
    }

    /// Removes an unwanted activity; returns it if it has to be stopped.
    pub(crate) fn cancel(&self, key: &ActivityKey) -> Option<ActivityRef> {
        let mut items = self.lock();
        let entry = items.remove(key).or_else(|| items.late.remove(key));
        self.tell_room(&items);
        entry?.into_stop()
    }

    /// Another node looks after these shards now.
    pub(crate) fn forget(&self, shards: &[ShardId]) {
        let mut items = self.lock();
        items.retain(|entry| !shards.contains(&entry.place.shard));
        self.tell_room(&items);
    }

    /// Another node looks after this instance now.
    pub(crate) fn hand_over(&self, instance: &InstanceId) {
        let mut items = self.lock();
        let known = items.entries.range(keys_of(instance)).chain(items.late.range(keys_of(instance)));
        for key in known.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            items.remove(&key);
            items.late.remove(&key);
        }
        self.tell_room(&items);
    }

    /// Keeps only these activities of an instance, as the store has just named them. Returns those to stop: of a life that was
    /// deleted or replaced, or ended by a commit whose answer was lost.
    pub(crate) fn keep_of(&self, instance: &InstanceId, outstanding: &[ActivityItem]) -> Vec<ActivityRef> {
        let mut items = self.lock();
        let Items { entries, late, .. } = &*items;
        let known = entries.range(keys_of(instance)).chain(late.range(keys_of(instance)));
        let wanted: BTreeMap<&ActivityKey, Token> = outstanding.iter().map(|item| (&item.key, item.token)).collect();
        let is_wanted = |entry: &Entry| wanted.get(&entry.item.key) == Some(&entry.item.token);
        let gone: Vec<ActivityKey> = known.filter(|(_, entry)| !is_wanted(entry)).map(|(key, _)| key.clone()).collect();
        let mut to_stop = Vec::new();
        for key in gone {
            let entry = items.remove(&key).or_else(|| items.late.remove(&key));
            to_stop.extend(entry.and_then(|entry| entry.into_stop()));
        }
        self.tell_room(&items);
        to_stop
    }

    /// Keeps only activities of held places: a turn that was under way while its shard was given up may have added others.
    pub(crate) fn keep_only(&self, is_held: impl Fn(Place) -> bool) {
        let mut items = self.lock();
        items.retain(|entry| is_held(entry.place));
        self.tell_room(&items);
    }

    pub(crate) fn clear(&self) {
        self.lock().retain(|_| false);
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Makes all activities due at the next look.
    pub(crate) fn mark_all_due(&self) {
        self.mark_due(|_| true);
    }

    /// Makes all activities of sessions due at the next look.
    pub(crate) fn mark_sessions_due(&self) {
        self.mark_due(|entry| entry.item.session_id.is_some());
    }

    /// Makes matching activities due at the next look.
    fn mark_due(&self, matches: impl Fn(&Entry) -> bool) {
        let now = Instant::now();
        for entry in self.lock().entries.values_mut().filter(|entry| matches(entry)) {
            entry.offer_at = now;
            entry.pause = FIRST_OFFER / 2;
        }
    }

    /// Returns all activities that are due, and counts them as offered.
    pub(crate) fn due(&self) -> Vec<ActivityItem> {
        let now = Instant::now();
        let mut items = self.lock();
        let due = items.entries.values_mut().filter(|entry| !entry.waits && entry.offer_at <= now);
        due.map(|entry| {
            entry.pause = (entry.pause * 2).min(OFFER_MAX);
            entry.offer_at = now + entry.pause;
            entry.item.clone()
        })
        .collect()
    }

    /// The broker refused this offer: it does not count, and is made again soon. Otherwise activities offered during an outage
    /// would wait long after it.
    pub(crate) fn refused(&self, offered: &[ActivityItem]) {
        let (again, mut items) = (Instant::now() + REFUSED_AGAIN, self.lock());
        for item in offered {
            if let Some(entry) = items.entries.get_mut(&item.key) {
                entry.pause = (entry.pause / 2).max(FIRST_OFFER / 2);
                entry.offer_at = again;
            }
        }
    }

    /// Waits until activities that waited may go to the broker, and takes those.
    pub(crate) async fn admitted(&self) -> Vec<(ActivityItem, bool)> {
        loop {
            // Room made between two calls is not missed: `Notify` keeps its permit.
            self.room.notified().await;
            let admitted = self.lock().take_waiting();
            if !admitted.is_empty() {
                return admitted;
            }
        }
    }

    fn tell_room(&self, items: &Items) {
        if items.has_room() {
            self.room.notify_one();
        }
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

#[cfg(test)]
mod tests;
