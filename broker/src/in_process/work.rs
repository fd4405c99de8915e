//! The queues: one per tag, one per tag for sessions that nobody holds, one per worker for the sessions that it holds.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use outlast_core::{ActivityItem, ActivityRef, TagFilter, WorkerId};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::Work;
use crate::{Control, Delivery, Dispatch, Settle, WorkSource, WorkerProfile};

type Tag = Option<String>;

#[derive(Default)]
pub(crate) struct WorkState {
    untied: BTreeMap<Tag, VecDeque<Queued>>,
    unclaimed: BTreeMap<Tag, VecDeque<Queued>>,
    /// For each session, the worker that gets items published before its holder was known.
    sessions: BTreeMap<String, WorkerId>,
    workers: BTreeMap<WorkerId, Worker>,
    /// Every item that is queued or in flight. A queued item that is not here any more was cancelled.
    known: BTreeMap<ActivityRef, Known>,
}

struct Queued {
    item: Arc<ActivityItem>,
    since: Instant,
}

#[derive(Default)]
struct Known {
    runs_on: Option<WorkerId>,
}

struct Worker {
    filter: TagFilter,
    sessions: BTreeSet<String>,
    own: VecDeque<Queued>,
    control: mpsc::UnboundedSender<Control>,
    wake: Arc<Notify>,
    waits: bool,
    /// It has room for sessions that nobody holds.
    admits: bool,
    /// It takes no more. What is passed on to it waits until its sessions are free.
    closed: bool,
}

impl Queued {
    fn is_of(&self, session: &str) -> bool {
        self.item.session_id.as_deref() == Some(session)
    }
}

impl WorkState {
    pub(crate) fn outstanding(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn publish(&mut self, Dispatch { item, worker, .. }: Dispatch) {
        match self.known.entry(item.activity()) {
            Entry::Occupied(_) => return,
            Entry::Vacant(entry) => drop(entry.insert(Known::default())),
        }
        self.enqueue(Queued { item: Arc::new(item), since: Instant::now() }, worker.as_ref());
    }

    pub(crate) fn cancel(&mut self, activity: &ActivityRef) {
        let Some(known) = self.known.get(activity) else { return };
        match &known.runs_on {
            None => {
                self.known.remove(activity);
            }
            Some(worker) => {
                if let Some(worker) = self.workers.get(worker) {
                    // A worker that is gone runs nothing any more.
                    let _gone = worker.control.send(Control::Cancel(activity.clone()));
                }
            }
        }
    }

    pub(crate) fn join(&mut self, profile: WorkerProfile, control: mpsc::UnboundedSender<Control>) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        let worker = Worker {
            filter: profile.filter,
            sessions: BTreeSet::new(),
            own: VecDeque::new(),
            control,
            wake: Arc::clone(&wake),
            waits: false,
            admits: profile.sessions_max > 0,
            closed: false,
        };
        self.workers.insert(profile.id, worker);
        wake
    }

    /// What a worker has not begun goes to others; what is passed on to it from now on waits for its sessions.
    fn close(&mut self, id: &WorkerId) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        worker.closed = true;
        let own = std::mem::take(&mut worker.own);
        worker.sessions.clear();
        self.sessions.retain(|_, holder| holder != id);
        own.into_iter().for_each(|queued| self.enqueue(queued, None));
        // It may have been woken for an item that it does not take any more.
        self.workers.values_mut().filter(|worker| worker.waits).for_each(Worker::wake);
    }

    fn leave(&mut self, id: &WorkerId) {
        self.close(id);
        if let Some(worker) = self.workers.remove(id) {
            // Passed on to it since it was closed.
            worker.own.into_iter().for_each(|queued| self.enqueue(queued, None));
        }
    }

    fn admit_sessions(&mut self, id: &WorkerId, admit: bool) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.admits = admit;
        }
    }

    /// A worker uses a session: what waits for it comes to this worker, as it may have no room for other sessions.
    fn hold_session(&mut self, id: &WorkerId, session: &str) {
        let Some(worker) = self.workers.get_mut(id).filter(|worker| !worker.closed) else { return };
        // Two workers may use it until the store has said whose it is.
        if self.sessions.contains_key(session) {
            return;
        }
        self.sessions.insert(session.to_owned(), id.clone());
        worker.sessions.insert(session.to_owned());
        for queue in self.unclaimed.values_mut() {
            worker.own.extend(take_session(queue, session));
        }
    }

    fn release_session(&mut self, id: &WorkerId, session: &str) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        if worker.sessions.remove(session) {
            self.sessions.remove(session);
        }
        take_session(&mut worker.own, session).into_iter().for_each(|queued| self.enqueue(queued, None));
    }

    /// Whether something of a session waits for this worker.
    fn waits_for(&self, id: &WorkerId, session: &str) -> bool {
        self.workers.get(id).is_some_and(|worker| worker.own.iter().any(|queued| queued.is_of(session)))
    }

    /// Puts an item where it belongs, by its age, and wakes one worker that can take it. `holder` has its session.
    fn enqueue(&mut self, queued: Queued, holder: Option<&WorkerId>) {
        let tag = queued.item.tag.clone();
        let session = queued.item.session_id.as_ref();
        let holder = session.and_then(|session| holder.or_else(|| self.sessions.get(session))).cloned();
        if let Some(worker) = holder.and_then(|holder| self.workers.get_mut(&holder)) {
            insert(&mut worker.own, queued);
            worker.wake();
            return;
        }
        let tied = session.is_some();
        let queues = if tied { &mut self.unclaimed } else { &mut self.untied };
        insert(queues.entry(tag.clone()).or_default(), queued);
        let fits =
            |worker: &&mut Worker| worker.waits && worker.filter.matches(tag.as_deref()) && (!tied || worker.admits);
        // A new session goes to the worker that holds the fewest, so that they spread.
        let waiting = self.workers.values_mut().filter(fits);
        if let Some(worker) = waiting.min_by_key(|worker| if tied { worker.sessions.len() } else { 0 }) {
            worker.wake();
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
            // Cancelled while it was queued.
            let Some(known) = self.known.get_mut(&queued.item.activity()) else { continue };
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
        let filter = worker.filter.clone();
        let unclaimed = if worker.admits { pop_oldest(&mut self.unclaimed, &filter) } else { None };
        unclaimed.or_else(|| pop_oldest(&mut self.untied, &filter))
    }

    /// Whether something is queued that this worker may take.
    fn has_waiting(&self, id: &WorkerId) -> bool {
        let Some(worker) = self.workers.get(id) else { return false };
        let takes = |queues: &BTreeMap<Tag, VecDeque<Queued>>| {
            queues.iter().any(|(tag, queue)| !queue.is_empty() && worker.filter.matches(tag.as_deref()))
        };
        !worker.own.is_empty() || takes(&self.untied) || takes(&self.unclaimed)
    }

    fn lay_aside(&mut self, activity: &ActivityRef) {
        if let Some(known) = self.known.get_mut(activity) {
            known.runs_on = None;
        }
    }

    fn settle(&mut self, queued: Queued, settle: &Settle) {
        let activity = queued.item.activity();
        let Some(known) = self.known.get_mut(&activity) else { return };
        match settle {
            Settle::Ack => {
                self.known.remove(&activity);
            }
            Settle::Requeue | Settle::Later(_) | Settle::Unclaimed | Settle::Forward(_) => {
                known.runs_on = None;
                let holder = if let Settle::Forward(worker) = settle { Some(worker) } else { None };
                self.enqueue(queued, holder);
            }
        }
    }
}

impl Worker {
    fn wake(&mut self) {
        self.waits = false;
        self.wake.notify_one();
    }
}

/// Keeps the oldest at the front: what was given back is not overtaken by what came later.
fn insert(queue: &mut VecDeque<Queued>, queued: Queued) {
    let younger = queue.iter().rev().take_while(|other| other.since > queued.since).count();
    let at = queue.len() - younger;
    queue.insert(at, queued);
}

/// Takes out what is of a session.
fn take_session(queue: &mut VecDeque<Queued>, session: &str) -> VecDeque<Queued> {
    let (taken, others) = std::mem::take(queue).into_iter().partition(|queued| queued.is_of(session));
    *queue = others;
    taken
}

/// The item that has waited longest among the queues whose tag the filter takes.
fn pop_oldest(queues: &mut BTreeMap<Tag, VecDeque<Queued>>, filter: &TagFilter) -> Option<Queued> {
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

    async fn has_waiting(&mut self) -> bool {
        self.work.lock().has_waiting(&self.id)
    }

    fn admit_sessions(&mut self, admit: bool) {
        self.work.lock().admit_sessions(&self.id, admit);
    }

    fn hold_session(&mut self, session: &str) {
        self.work.lock().hold_session(&self.id, session);
    }

    fn release_session(&mut self, session: &str) {
        self.work.lock().release_session(&self.id, session);
    }

    fn waits_for(&self, session: &str) -> bool {
        self.work.lock().waits_for(&self.id, session)
    }

    async fn close(&mut self) {
        self.work.lock().close(&self.id);
    }

    async fn finish(&mut self) {
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
        let Settle::Later(delay) = settle else { return self.settle_now(&settle) };
        let Some(queued) = self.queued.take() else { return };
        // Whoever cancels it meanwhile finds that nobody runs it.
        self.work.lock().lay_aside(&queued.item.activity());
        let mut aside = Self { work: Arc::clone(&self.work), queued: Some(queued) };
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            aside.settle_now(&settle);
        });
    }

    fn settle_now(&mut self, settle: &Settle) {
        let Some(queued) = self.queued.take() else { return };
        let mut state = self.work.lock();
        state.settle(queued, settle);
        self.work.count(&state);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.settle_now(&Settle::Requeue);
    }
}

fn delivery(work: &Arc<Work>, queued: Queued) -> Delivery {
    let item = Arc::clone(&queued.item);
    let queued_ms = u64::try_from(queued.since.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut in_flight = InFlight { work: Arc::clone(work), queued: Some(queued) };
    Delivery { item, queued_ms, redelivered: false, settle: Box::new(move |settle| in_flight.settle(settle)) }
}
