//! What a worker's puller has fetched and its worker has not taken yet.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outlast_core::ActivityItem;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::cancellations::Cancelled;
use super::subjects::WorkQueue;
use super::unacknowledged::AckHandle;
use crate::{Delivery, Settle};

/// How long an item lies on the buffer before it goes back for others: a busy worker takes the next one far sooner.
const BUFFERED_MAX: Duration = Duration::from_millis(100);

/// An item that was fetched and not handed out yet.
pub(crate) struct Fetched {
    pub(crate) item: ActivityItem,
    pub(crate) hold: AckHandle,
    /// Nanoseconds since 1970, by the server's clock.
    pub(crate) published: u64,
    pub(crate) redelivered: bool,
    /// Its session is held by nobody.
    pub(crate) unclaimed: bool,
    pub(crate) since: Instant,
}

/// What puller and worker share.
#[derive(Default)]
pub(crate) struct PrefetchBuffer {
    state: Mutex<State>,
    pub(crate) filled: Notify,
    /// The worker wants more.
    pub(crate) wanted: Notify,
}

pub(crate) struct State {
    pub(crate) fetched: VecDeque<Fetched>,
    pub(crate) wish: Wish,
    pub(crate) admit_sessions: bool,
    /// Sessions that the worker uses.
    pub(crate) held: HashSet<String>,
    /// Where the worker's items come from.
    queues: Vec<WorkQueue>,
    /// When the server said last that more waits for this worker alone.
    pub(crate) more_of_own: Option<Instant>,
}

impl Default for State {
    fn default() -> Self {
        let (fetched, wish, held, queues) = (VecDeque::new(), Wish::default(), HashSet::new(), Vec::new());
        Self { fetched, wish, admit_sessions: true, held, queues, more_of_own: None }
    }
}

impl State {
    /// An item whose session nobody holds is of no use to a worker that may take no more sessions.
    pub(crate) fn refuses(&self, fetched: &Fetched) -> bool {
        let is_held = |session: &String| self.held.contains(session);
        fetched.unclaimed && !self.admit_sessions && !fetched.item.session_id.as_ref().is_some_and(is_held)
    }
}

/// How many items the worker has room for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wish {
    room: usize,
    /// The worker waits now.
    pub(crate) waits: bool,
    /// The wish is new.
    fresh: bool,
}

/// What the puller may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) items: usize,
    pub(crate) sessions: bool,
}

impl PrefetchBuffer {
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

    /// Its worker pulls from this queue too.
    pub(crate) fn note_queue(&self, queue: WorkQueue) {
        self.lock().queues.push(queue);
    }

    /// The queues in which something may be waiting for a full worker; while it has a free slot, only sessions can be waiting.
    pub(crate) fn full_queues(&self) -> Vec<WorkQueue> {
        let state = self.lock();
        let is_full = |queue: &&WorkQueue| state.wish.room == 0 || matches!(queue, WorkQueue::Session(_));
        state.queues.iter().filter(is_full).cloned().collect()
    }

    /// Gives back what has lain for too long, because the worker has no room.
    pub(crate) fn sweep(&self) {
        let old: Vec<Fetched> = {
            let mut state = self.lock();
            let count = state.fetched.iter().take_while(|fetched| fetched.since.elapsed() >= BUFFERED_MAX).count();
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

    pub(crate) fn take(&self, room: usize, cancelled: &Cancelled) -> Vec<Delivery> {
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

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn delivery(fetched: Fetched) -> Delivery {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Clocks of machines differ: an item from the future has not waited.
    let queued = now.saturating_sub(Duration::from_nanos(fetched.published));
    let hold = fetched.hold;
    Delivery {
        item: Arc::new(fetched.item),
        queued_ms: u64::try_from(queued.as_millis()).unwrap_or(u64::MAX),
        redelivered: fetched.redelivered,
        settle: Box::new(move |settle| hold.settle(settle)),
    }
}
