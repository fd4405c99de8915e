//! A worker's end of the stream of work.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::cancellations::Cancelled;
use super::consumers::Backlog;
use super::prefetch::{Fetched, PrefetchBuffer};
use super::server::Server;
use super::subjects::WorkQueue;
use super::unacknowledged::Unacknowledged;
use crate::{Delivery, WorkSource};

/// How long it is believed that more waits for the worker alone: it may have gone to others, or be gone.
const TOLD_FOR: Duration = Duration::from_secs(1);
/// Longest wait of a source that ends for the server: less than what a shutdown has for all its farewells.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);
/// Most queues that are asked about at once, and longest wait for the answers: a worker that is full asks every second.
const LOOK_AT_MAX: usize = 16;
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// The worker's side; closed or dropped, the puller gives back what was not handed out and ends.
pub(crate) struct Source {
    pub(crate) server: Arc<Server>,
    pub(crate) buffer: Arc<PrefetchBuffer>,
    pub(crate) cancelled: Arc<Cancelled>,
    pub(crate) unacknowledged: Arc<Unacknowledged>,
    /// Where work comes that only this worker is given.
    pub(crate) own: Option<WorkQueue>,
    pub(crate) puller: JoinHandle<()>,
    /// Dropped when closed: the signs to end for the puller and the reader of cancellations.
    pub(crate) open: Option<[oneshot::Sender<()>; 2]>,
    /// The queue to look at first: the one where something last waited, or the next one after those where nothing did.
    pub(crate) look_from: usize,
}

/// Notes that the worker waits no more, however the wait ends.
struct Waiting<'a>(&'a PrefetchBuffer);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().wish.waits = false;
    }
}

#[async_trait]
impl WorkSource for Source {
    async fn next(&mut self, room: usize) -> Option<Vec<Delivery>> {
        let waiting = Waiting(&self.buffer);
        loop {
            let filled = self.buffer.filled.notified();
            let taken = self.buffer.take(room.max(1), &self.cancelled);
            if !taken.is_empty() {
                return Some(taken);
            }
            filled.await;
            let _still = &waiting;
        }
    }

    async fn has_waiting(&mut self) -> bool {
        let mut queues = self.buffer.full_queues();
        if queues.is_empty() {
            return false;
        }
        self.look_from %= queues.len();
        queues.rotate_left(self.look_from);
        let all = queues.len();
        queues.truncate(LOOK_AT_MAX);
        let gave_back = self.unacknowledged.take_given_back();
        let looks = futures::future::join_all(queues.iter().map(|queue| self.server.backlog(queue)));
        let looked = self.server.while_up(LOOK_TIMEOUT, looks).await.unwrap_or_default();
        let is_known = looked.iter().any(Result::is_ok);
        // An item that was given back, which nobody asks for, is counted with those that workers hold.
        let lies = |queue: &WorkQueue, backlog: &Backlog| {
            gave_back && backlog.requests == 0 && backlog.unsettled > self.unacknowledged.held_of(queue)
        };
        let (mut waits, mut given_back_waits) = (None, false);
        for (index, (queue, backlog)) in queues.iter().zip(looked).enumerate() {
            let Ok(backlog) = backlog else { continue };
            let lies = lies(queue, &backlog);
            given_back_waits |= lies;
            if lies || backlog.pending > 0 {
                waits = waits.or(Some(index));
            }
        }
        if gave_back && (given_back_waits || !is_known || queues.len() < all) {
            self.unacknowledged.note_given_back();
        }
        self.look_from = (self.look_from + waits.unwrap_or(queues.len())) % all;
        waits.is_some()
    }

    fn admit_sessions(&mut self, admit: bool) {
        let refused: VecDeque<Fetched> = {
            let mut state = self.buffer.lock();
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
        let mut state = self.buffer.lock();
        if !state.held.contains(session) {
            state.held.insert(session.to_owned());
        }
    }

    fn release_session(&mut self, session: &str) {
        self.buffer.lock().held.remove(session);
    }

    /// What the server has for this worker alone is of any of its sessions.
    fn waits_for(&self, session: &str) -> bool {
        let state = self.buffer.lock();
        let is_of = |fetched: &Fetched| fetched.item.session_id.as_deref() == Some(session);
        state.more_of_own.is_some_and(|told| told.elapsed() < TOLD_FOR) || state.fetched.iter().any(is_of)
    }

    async fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.unacknowledged.close();
            drop(open);
            // A puller that panicked has nothing more to give back.
            let _ended = (&mut self.puller).await;
            self.pass_on().await;
        }
    }

    async fn finish(&mut self) {
        self.pass_on().await;
        if self.server.while_up(FINISH_TIMEOUT, self.unacknowledged.finish()).await.is_none() {
            tracing::warn!(target: super::LOG, "the server does not answer: what this worker gives back is given to others later");
        }
    }
}

impl Source {
    /// What waits for this worker alone goes to whoever takes over its session.
    async fn pass_on(&self) {
        let Some(queue) = &self.own else { return };
        let passing = async {
            while self.unacknowledged.take_waiting(queue).await? > 0 {}
            Ok::<(), crate::Error>(())
        };
        match self.server.while_up(FINISH_TIMEOUT, passing).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::debug!(target: super::LOG, %error, "work of this worker's sessions was not passed on");
            }
            None => tracing::debug!(target: super::LOG, "work of this worker's sessions was not passed on in time"),
        }
    }
}
