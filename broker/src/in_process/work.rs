//! The queues: one per tag, one per tag for sessions that nobody owns, one per worker for the sessions that it owns.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use outlast_core::{ActivityItem, ActivityKey, Token, WorkerId};
use tokio::sync::{Notify, mpsc};

use super::Work;
use crate::{Control, Delivery, Settle, WorkSource, WorkerProfile};

type Tag = Option<String>;

#[derive(Default)]
pub(crate) struct WorkState {
    untied: BTreeMap<Tag, VecDeque<Queued>>,
    unclaimed: BTreeMap<Tag, VecDeque<Queued>>,
    sessions: HashMap<String, WorkerId>,
    workers: HashMap<WorkerId, Worker>,
    /// Every item that is queued or in flight. A queued item that is not here any more was cancelled.
    known: HashMap<ActivityKey, Known>,
}

struct Queued {
    item: ActivityItem,
    since: Instant,
}

struct Known {
    token: Token,
    runs_on: Option<WorkerId>,
}

struct Worker {
    profile: WorkerProfile,
    sessions: HashSet<String>,
    own: VecDeque<Queued>,
    control: mpsc::UnboundedSender<Control>,
    wake: Arc<Notify>,
    waits: bool,
}

impl WorkState {
    pub(crate) fn outstanding(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn publish(&mut self, item: ActivityItem) {
        let known = self.known.get(&item.key);
        if known.is_some_and(|known| known.token == item.token) {
            return;
        }
        self.known.insert(item.key.clone(), Known { token: item.token, runs_on: None });
        self.enqueue(Queued { item, since: Instant::now() }, false);
    }

    pub(crate) fn cancel(&mut self, key: &ActivityKey) {
        let Some(known) = self.known.get(key) else { return };
        match &known.runs_on {
            None => {
                self.known.remove(key);
            }
            Some(worker) => {
                if let Some(worker) = self.workers.get(worker) {
                    // A worker that is gone runs nothing any more.
                    let _gone = worker.control.send(Control::Cancel(key.clone()));
                }
            }
        }
    }

    pub(crate) fn join(&mut self, profile: WorkerProfile, control: mpsc::UnboundedSender<Control>) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        let id = profile.id.clone();
        let (sessions, own) = (HashSet::new(), VecDeque::new());
        let worker = Worker { profile, sessions, own, control, wake: Arc::clone(&wake), waits: false };
        self.workers.insert(id, worker);
        wake
    }

    fn leave(&mut self, id: &WorkerId) {
        let Some(worker) = self.workers.remove(id) else { return };
        for session in &worker.sessions {
            self.sessions.remove(session);
        }
        for queued in worker.own.into_iter().rev() {
            self.enqueue(queued, true);
        }
        self.wake_for_sessions();
    }

    fn release_session(&mut self, id: &WorkerId, session: &str) {
        let waits =
            |worker: &Worker| worker.own.iter().any(|queued| queued.item.session_id.as_deref() == Some(session));
        let busy = self.workers.get(id).is_some_and(waits);
        let Some(worker) = self.workers.get_mut(id).filter(|_| !busy) else { return };
        if worker.sessions.remove(session) {
            self.sessions.remove(session);
            self.wake_for_sessions();
        }
    }

    /// Puts an item where it belongs and wakes one worker that can take it.
    fn enqueue(&mut self, queued: Queued, front: bool) {
        let owner = queued.item.session_id.as_ref().and_then(|session| self.sessions.get(session)).cloned();
        let tag = queued.item.tag.clone();
        if let Some(worker) = owner.and_then(|owner| self.workers.get_mut(&owner)) {
            push(&mut worker.own, queued, front);
            worker.wake();
            return;
        }
        let tied = queued.item.session_id.is_some();
        let queues = if tied { &mut self.unclaimed } else { &mut self.untied };
        push(queues.entry(tag.clone()).or_default(), queued, front);
        let fits = |worker: &&mut Worker| {
            worker.waits && worker.profile.filter.matches(tag.as_deref()) && (!tied || worker.has_session_room())
        };
        // A new session goes to the worker that holds the fewest, so that they spread.
        let waiting = self.workers.values_mut().filter(fits);
        if let Some(worker) = waiting.min_by_key(|worker| if tied { worker.sessions.len() } else { 0 }) {
            worker.wake();
        }
    }

    /// Room for sessions has come up: whoever waits looks again.
    fn wake_for_sessions(&mut self) {
        if self.unclaimed.values().any(|queue| !queue.is_empty()) {
            self.workers.values_mut().filter(|worker| worker.waits).for_each(Worker::wake);
        }
    }

    /// The next item for a worker; notes that it waits when there is none.
    fn take(&mut self, id: &WorkerId) -> Option<Queued> {
        loop {
            let queued = self.next_queued(id);
            let Some(queued) = queued else {
                if let Some(worker) = self.workers.get_mut(id) {
                    worker.waits = true;
                }
                return None;
            };
            // Cancelled while it was queued, or replaced by a later life of the same id.
            let Some(known) = self.known.get_mut(&queued.item.key).filter(|known| known.token == queued.item.token)
            else {
                continue;
            };
            known.runs_on = Some(id.clone());
            return Some(queued);
        }
    }

    fn next_queued(&mut self, id: &WorkerId) -> Option<Queued> {
        let worker = self.workers.get_mut(id)?;
        worker.waits = false;
        if let Some(queued) = worker.own.pop_front() {
            return Some(queued);
        }
        let filter = worker.profile.filter.clone();
        if worker.has_session_room()
            && let Some(queued) = pop_oldest(&mut self.unclaimed, &filter)
        {
            return self.claim(id, queued);
        }
        pop_oldest(&mut self.untied, &filter)
    }

    /// Gives the session of an unclaimed item to a worker, with all that waits for it.
    fn claim(&mut self, id: &WorkerId, queued: Queued) -> Option<Queued> {
        let session = queued.item.session_id.clone()?;
        self.sessions.insert(session.clone(), id.clone());
        let worker = self.workers.get_mut(id)?;
        worker.sessions.insert(session.clone());
        for queue in self.unclaimed.values_mut() {
            let (mine, others): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(queue).into_iter().partition(|other| other.item.session_id.as_ref() == Some(&session));
            *queue = others;
            worker.own.extend(mine);
        }
        Some(queued)
    }

    fn settle(&mut self, queued: Queued, settle: &Settle) {
        let current = self.known.get_mut(&queued.item.key).filter(|known| known.token == queued.item.token);
        let Some(known) = current else { return };
        match settle {
            Settle::Ack => {
                self.known.remove(&queued.item.key);
            }
            Settle::Requeue | Settle::Forward(_) => {
                known.runs_on = None;
                self.enqueue(queued, true);
            }
        }
    }
}

impl Worker {
    fn has_session_room(&self) -> bool {
        self.sessions.len() < self.profile.sessions_max
    }

    fn wake(&mut self) {
        self.waits = false;
        self.wake.notify_one();
    }
}

fn push(queue: &mut VecDeque<Queued>, queued: Queued, front: bool) {
    if front { queue.push_front(queued) } else { queue.push_back(queued) }
}

/// The item that has waited longest among the queues whose tag the filter takes.
fn pop_oldest(queues: &mut BTreeMap<Tag, VecDeque<Queued>>, filter: &outlast_core::TagFilter) -> Option<Queued> {
    let matching = queues.iter().filter(|(tag, _)| filter.matches(tag.as_deref()));
    let oldest = matching
        .filter_map(|(tag, queue)| queue.front().map(|queued| (queued.since, tag)))
        .min_by_key(|(since, _)| *since);
    let tag = oldest?.1.clone();
    let queue = queues.get_mut(&tag)?;
    let queued = queue.pop_front();
    if queue.is_empty() {
        queues.remove(&tag);
    }
    queued
}

/// A worker's end of the queues.
pub(crate) struct Source {
    work: Arc<Work>,
    id: WorkerId,
    wake: Arc<Notify>,
}

impl Source {
    pub(crate) fn new(work: Arc<Work>, id: WorkerId, wake: Arc<Notify>) -> Self {
        Self { work, id, wake }
    }
}

#[async_trait]
impl WorkSource for Source {
    async fn next(&mut self, room: usize) -> Option<Vec<Delivery>> {
        loop {
            let taken: Vec<Queued> = {
                let mut state = self.work.lock();
                std::iter::from_fn(|| state.take(&self.id)).take(room).collect()
            };
            if !taken.is_empty() {
                return Some(taken.into_iter().map(|queued| delivery(&self.work, queued)).collect());
            }
            self.wake.notified().await;
        }
    }

    /// Rooms for sessions are counted here, where they are given out.
    fn admit_sessions(&mut self, _admit: bool) {}

    fn release_session(&mut self, session: &str) {
        self.work.lock().release_session(&self.id, session);
    }

    async fn close(&mut self) {
        self.work.lock().leave(&self.id);
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.work.lock().leave(&self.id);
    }
}

/// Returns its item to the queue unless it was settled.
struct InFlight {
    work: Arc<Work>,
    queued: Option<Queued>,
}

impl InFlight {
    fn settle(&mut self, settle: Settle) {
        let Some(queued) = self.queued.take() else { return };
        let mut state = self.work.lock();
        state.settle(queued, &settle);
        self.work.count(&state);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.settle(Settle::Requeue);
    }
}

fn delivery(work: &Arc<Work>, queued: Queued) -> Delivery {
    let item = queued.item.clone();
    let queued_ms = u64::try_from(queued.since.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut in_flight = InFlight { work: Arc::clone(work), queued: Some(queued) };
    Delivery { item, queued_ms, redelivered: false, settle: Box::new(move |settle| in_flight.settle(settle)) }
}
