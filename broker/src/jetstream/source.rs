//! A worker's end of the stream: a shelf that the puller fills and the worker empties.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use outlast_core::ActivityItem;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::control::Cancelled;
use super::hub::{Backlog, Hub};
use super::settle::{Hold, Holdings};
use super::subjects::Lane;
use crate::{Delivery, Settle, WorkSource};

/// How long an item lies on the shelf before it goes back for others.
const SHELF_TIME_MAX: Duration = Duration::from_millis(100);

/// How long it is believed that more waits for the worker alone: it may have gone to others, or be gone.
const TOLD_FOR: Duration = Duration::from_secs(1);

/// Longest wait of a source that ends for the server.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// Most lanes that are asked about at once, and longest wait for the answers: a worker that is full asks every second.
const LOOK_AT_MAX: usize = 16;
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// An item that was fetched and not handed out yet.
pub(crate) struct Fetched {
    pub(crate) item: ActivityItem,
    pub(crate) hold: Hold,
    /// Nanoseconds since 1970, by the server's clock.
    pub(crate) published: u64,
    pub(crate) redelivered: bool,
    /// Its session is held by nobody.
    pub(crate) unclaimed: bool,
    pub(crate) since: Instant,
}

/// What puller and worker share.
#[derive(Default)]
pub(crate) struct Shelf {
    state: Mutex<State>,
    filled: Notify,
    /// The worker wants more.
    pub(crate) wanted: Notify,
}

struct State {
    fetched: VecDeque<Fetched>,
    wish: Wish,
    admit_sessions: bool,
    /// Sessions that the worker uses.
    held: HashSet<String>,
    /// Where the worker's items come from.
    lanes: Vec<Lane>,
    /// When the server said last that more waits for this worker alone.
    more_of_own: Option<Instant>,
}

impl Default for State {
    fn default() -> Self {
        let (fetched, wish, held, lanes) = (VecDeque::new(), Wish::default(), HashSet::new(), Vec::new());
        Self { fetched, wish, admit_sessions: true, held, lanes, more_of_own: None }
    }
}

impl State {
    /// An item whose session nobody holds is of no use to a worker that may take no more sessions.
    fn refuses(&self, fetched: &Fetched) -> bool {
        let is_held = |session: &String| self.held.contains(session);
        fetched.unclaimed && !self.admit_sessions && !fetched.item.session_id.as_ref().is_some_and(is_held)
    }
}

/// How many items the worker has room for.
#[derive(Clone, Copy, Debug, Default)]
struct Wish {
    room: usize,
    /// The worker waits now.
    waits: bool,
    /// The wish is new.
    fresh: bool,
}

/// What the puller may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) items: usize,
    pub(crate) sessions: bool,
}

impl Shelf {
    /// What may be asked for now; nothing when the worker has stopped asking.
    pub(crate) fn room(&self) -> Room {
        let mut state = self.lock();
        let asked = state.wish.waits || std::mem::take(&mut state.wish.fresh);
        let items = if asked { state.wish.room.saturating_sub(state.fetched.len()) } else { 0 };
        Room { items, sessions: state.admit_sessions }
    }

    /// Lays an item down for the worker.
    pub(crate) fn put(&self, fetched: Fetched) {
        let mut state = self.lock();
        if state.refuses(&fetched) {
            drop(state);
            // Dropped, it goes to another worker.
            return;
        }
        state.fetched.push_back(fetched);
        drop(state);
        self.filled.notify_one();
    }

    /// How much more waits for this worker alone, as the server said with the item that it sent last.
    pub(crate) fn note_own(&self, pending: u64) {
        self.lock().more_of_own = (pending > 0).then(Instant::now);
    }

    /// Its worker pulls from this lane too.
    pub(crate) fn note_lane(&self, lane: Lane) {
        self.lock().lanes.push(lane);
    }

    /// The lanes of which something may wait for a worker that is full; with a free slot only sessions wait for it.
    fn full_lanes(&self) -> Vec<Lane> {
        let state = self.lock();
        let is_full = |lane: &&Lane| state.wish.room == 0 || matches!(lane, Lane::Session(_));
        state.lanes.iter().filter(is_full).cloned().collect()
    }

    /// Gives back what has lain for too long, because the worker has no room.
    pub(crate) fn sweep(&self) {
        let old: Vec<Fetched> = {
            let mut state = self.lock();
            let count = state.fetched.iter().take_while(|fetched| fetched.since.elapsed() >= SHELF_TIME_MAX).count();
            state.fetched.drain(..count).collect()
        };
        drop(old);
    }

    /// Gives everything back.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut self.lock().fetched);
        drop(all);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().fetched.is_empty()
    }

    fn take(&self, room: usize, cancelled: &Cancelled) -> Vec<Delivery> {
        let (mut taken, mut unwanted) = (Vec::new(), Vec::new());
        {
            let mut state = self.lock();
            while taken.len() < room {
                let Some(fetched) = state.fetched.pop_front() else { break };
                let wanted = !cancelled.has(&fetched.item.activity());
                if wanted { &mut taken } else { &mut unwanted }.push(fetched);
            }
            state.wish = Wish { room: room - taken.len(), waits: taken.is_empty(), fresh: true };
        }
        for fetched in unwanted {
            fetched.hold.settle(Settle::Ack);
        }
        self.wanted.notify_one();
        taken.into_iter().map(delivery).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker's side; closed or dropped, the puller gives back what was not handed out and ends.
pub(crate) struct Source {
    pub(crate) hub: Arc<Hub>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) cancelled: Arc<Cancelled>,
    pub(crate) holdings: Arc<Holdings>,
    /// Where work comes that only this worker is given.
    pub(crate) own: Option<Lane>,
    pub(crate) puller: JoinHandle<()>,
    /// Dropped when closed: the signs to end for the puller and the reader of cancellations.
    pub(crate) open: Option<[oneshot::Sender<()>; 2]>,
    /// The lane that is looked at first: where something waited last, or behind those where nothing did.
    pub(crate) look_from: usize,
}

/// Notes that the worker waits no more, however the wait ends.
struct Waiting<'a>(&'a Shelf);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().wish.waits = false;
    }
}

#[async_trait]
impl WorkSource for Source {
    async fn next(&mut self, room: usize) -> Option<Vec<Delivery>> {
        let waiting = Waiting(&self.shelf);
        loop {
            let filled = self.shelf.filled.notified();
            let taken = self.shelf.take(room.max(1), &self.cancelled);
            if !taken.is_empty() {
                return Some(taken);
            }
            filled.await;
            let _still = &waiting;
        }
    }

    async fn has_waiting(&mut self) -> bool {
        let mut lanes = self.shelf.full_lanes();
        if lanes.is_empty() {
            return false;
        }
        self.look_from %= lanes.len();
        lanes.rotate_left(self.look_from);
        let all = lanes.len();
        lanes.truncate(LOOK_AT_MAX);
        let gave_back = self.holdings.take_given_back();
        let looks = futures::future::join_all(lanes.iter().map(|lane| self.hub.backlog(lane)));
        let looked = self.hub.while_up(LOOK_TIMEOUT, looks).await.unwrap_or_default();
        let is_known = looked.iter().any(Result::is_ok);
        // An item that was given back, which nobody asks for, is counted with those that workers hold.
        let lies = |lane: &Lane, backlog: &Backlog| {
            gave_back && backlog.requests == 0 && backlog.unsettled > self.holdings.held_of(lane)
        };
        let (mut waits, mut given_back_waits) = (None, false);
        for (index, (lane, backlog)) in lanes.iter().zip(looked).enumerate() {
            let Ok(backlog) = backlog else { continue };
            let lies = lies(lane, &backlog);
            given_back_waits |= lies;
            if lies || backlog.pending > 0 {
                waits = waits.or(Some(index));
            }
        }
        if gave_back && (given_back_waits || !is_known || lanes.len() < all) {
            self.holdings.note_given_back();
        }
        self.look_from = (self.look_from + waits.unwrap_or(lanes.len())) % all;
        waits.is_some()
    }

    fn admit_sessions(&mut self, admit: bool) {
        let refused: VecDeque<Fetched> = {
            let mut state = self.shelf.lock();
            state.admit_sessions = admit;
            if admit {
                return;
            }
            let all = std::mem::take(&mut state.fetched);
            let (refused, kept) = all.into_iter().partition(|fetched| state.refuses(fetched));
            state.fetched = kept;
            refused
        };
        drop(refused);
    }

    fn hold_session(&mut self, session: &str) {
        let mut state = self.shelf.lock();
        if !state.held.contains(session) {
            state.held.insert(session.to_owned());
        }
    }

    fn release_session(&mut self, session: &str) {
        self.shelf.lock().held.remove(session);
    }

    /// What the server has for this worker alone is of any of its sessions.
    fn waits_for(&self, session: &str) -> bool {
        let state = self.shelf.lock();
        let is_of = |fetched: &Fetched| fetched.item.session_id.as_deref() == Some(session);
        state.more_of_own.is_some_and(|told| told.elapsed() < TOLD_FOR) || state.fetched.iter().any(is_of)
    }

    async fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.holdings.close();
            drop(open);
            // A puller that panicked has nothing more to give back.
            let _ended = (&mut self.puller).await;
            self.pass_on().await;
        }
    }

    async fn finish(&mut self) {
        self.pass_on().await;
        if self.hub.while_up(FINISH_TIMEOUT, self.holdings.finish()).await.is_none() {
            tracing::warn!(target: super::LOG, "the server does not answer: what this worker gives back is given to others later");
        }
    }
}

impl Source {
    /// What waits for this worker alone goes to whoever takes over its session.
    async fn pass_on(&self) {
        let Some(lane) = &self.own else { return };
        let passing = async {
            while self.holdings.take_waiting(lane).await? > 0 {}
            Ok::<(), crate::Error>(())
        };
        match self.hub.while_up(FINISH_TIMEOUT, passing).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::debug!(target: super::LOG, %error, "work of this worker's sessions was not passed on");
            }
            None => tracing::debug!(target: super::LOG, "work of this worker's sessions was not passed on in time"),
        }
    }
}

fn delivery(fetched: Fetched) -> Delivery {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Clocks of machines differ: an item from the future has not waited.
    let queued = now.saturating_sub(Duration::from_nanos(fetched.published));
    let hold = fetched.hold;
    Delivery {
        item: fetched.item,
        queued_ms: u64::try_from(queued.as_millis()).unwrap_or(u64::MAX),
        redelivered: fetched.redelivered,
        settle: Box::new(move |settle| hold.settle(settle)),
    }
}
