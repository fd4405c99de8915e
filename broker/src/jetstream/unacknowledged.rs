//! How held items are given back, and how the server is told that they are still worked on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::{Message, Subject};
use futures::StreamExt as _;
use outlast_core::{ActivityItem, WorkerId, decode};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ack_subject::AckSubject;
use super::restarts::keep;
use super::server::{Server, unavailable};
use super::subjects::WorkQueue;
use crate::{Dispatch, Error, Settle};

/// Most decisions that are written at once: one write to the socket.
const BATCH_MAX: usize = 256;
/// Decisions that could not be written for so long are of no use any more: the server has given the items to others.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// The items that a worker holds.
pub(crate) struct Unacknowledged {
    held: Mutex<HashMap<u64, Held>>,
    next_id: AtomicU64,
    /// The worker takes no more work: nothing goes back to the queue that only this worker reads.
    closed: AtomicBool,
    /// Something went back since somebody looked.
    given_back: AtomicBool,
    server: Arc<Server>,
    decisions: mpsc::UnboundedSender<Decision>,
}

struct Held {
    answer_to: Subject,
    /// The life of the stream that it came from.
    incarnation: u64,
    heard: Instant,
}

/// What the server is to be told about a held item.
enum Decision {
    Ack(Subject),
    Nak(Subject),
    Later(Subject, Duration),
    Drop(Subject),
    /// To a worker, or to whoever takes over its session.
    Forward(Subject, Box<Message>, Option<WorkerId>),
    /// Not about an item: answer when the server has handled all that was decided before.
    Told(oneshot::Sender<()>),
}

impl Unacknowledged {
    /// Starts the task that writes decisions; it ends when nothing is held any more and the source is gone.
    pub(crate) fn new(server: Arc<Server>, ack_wait: Duration) -> Arc<Self> {
        let (decisions, waiting) = mpsc::unbounded_channel();
        let (held, next_id, closed) = (Mutex::default(), AtomicU64::new(0), AtomicBool::new(false));
        let given_back = AtomicBool::new(false);
        let unacknowledged =
            Arc::new(Self { held, next_id, closed, given_back, server: Arc::clone(&server), decisions });
        let (troubles, kept) = (Arc::clone(&server.troubles), Arc::downgrade(&unacknowledged));
        let waiting = Arc::new(tokio::sync::Mutex::new(waiting));
        tokio::spawn(keep(troubles, "acknowledgements", move || {
            write(Arc::clone(&server), Arc::clone(&waiting), Weak::clone(&kept), ack_wait)
        }));
        unacknowledged
    }

    /// Takes a message into the unacknowledged. Dropped without a decision it goes back.
    pub(crate) fn hold(self: &Arc<Self>, message: Message) -> Option<AckHandle> {
        let answer_to = message.reply.clone()?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let incarnation = self.server.losses.incarnation();
        self.lock().insert(id, Held { answer_to, incarnation, heard: Instant::now() });
        Some(AckHandle { unacknowledged: Arc::clone(self), id, message: Some(message) })
    }

    /// From now on, what goes back does not go back to this worker.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Passes on some of what waits in the queue of a worker that takes no more; returns how much it was.
    pub(crate) async fn take_waiting(self: &Arc<Self>, queue: &WorkQueue) -> Result<usize, Error> {
        let (consumer, stream) = (queue.consumer(), self.server.subjects.work_stream());
        let fetch = async {
            let consumer = self.server.js.get_consumer_from_stream::<pull::Config, _, _>(consumer, stream).await;
            let fetched = consumer.map_err(unavailable)?.fetch().max_messages(BATCH_MAX).messages().await;
            Ok(fetched.map_err(unavailable)?.collect::<Vec<_>>().await)
        };
        let messages = self.server.answer(fetch).await?;
        let count = messages.len();
        // Dropped, each goes to others.
        messages.into_iter().filter_map(Result::ok).for_each(|message| drop(self.hold(message.message)));
        Ok(count)
    }

    /// Gives back all that has no decision yet, and returns when the server has handled everything.
    pub(crate) async fn finish(&self) {
        let left: Vec<Held> = self.lock().drain().map(|(_, held)| held).collect();
        let incarnation = self.server.losses.incarnation();
        for held in left.into_iter().filter(|held| held.incarnation == incarnation) {
            let _sent = self.decisions.send(Decision::Nak(held.answer_to));
        }
        let (told, all_told) = oneshot::channel();
        let _sent = self.decisions.send(Decision::Told(told));
        // Without an answer the server misses the items in time. A decision that is sent while the task ends may stay in the channel,
        // and so does the answer's sender.
        tokio::select! {
            biased;
            _unknown = all_told => {}
            () = self.decisions.closed() => {}
        }
    }

    /// Whether anything went back since this was asked last.
    pub(crate) fn take_given_back(&self) -> bool {
        self.given_back.swap(false, Ordering::AcqRel)
    }

    /// Something has gone back.
    pub(crate) fn note_given_back(&self) {
        self.given_back.store(true, Ordering::Release);
    }

    /// How many items of a queue are held here.
    pub(crate) fn held_of(&self, queue: &WorkQueue) -> usize {
        let consumer = queue.consumer();
        let is_of = |held: &&Held| AckSubject::parse(&held.answer_to).is_some_and(|origin| origin.consumer == consumer);
        self.lock().values().filter(is_of).count()
    }

    /// Back to where others are given it.
    fn back(&self, answer_to: Subject, message: Message) -> Decision {
        self.note_given_back();
        if self.is_mine_alone(&message) && self.closed.load(Ordering::Acquire) {
            Decision::Forward(answer_to, Box::new(message), None)
        } else {
            Decision::Nak(answer_to)
        }
    }

    fn is_mine_alone(&self, message: &Message) -> bool {
        self.server.subjects.is_of_worker(&message.subject)
    }

    /// Those last reported as in progress more than `age` ago; from now on they count as reported.
    fn silent_for(&self, age: Duration) -> Vec<Subject> {
        let incarnation = self.server.losses.incarnation();
        let mut held = self.lock();
        let silent = held.values_mut().filter(|held| held.incarnation == incarnation && held.heard.elapsed() >= age);
        silent
            .map(|held| {
                held.heard = Instant::now();
                held.answer_to.clone()
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One held item.
pub(crate) struct AckHandle {
    unacknowledged: Arc<Unacknowledged>,
    id: u64,
    message: Option<Message>,
}

impl AckHandle {
    /// Its bytes.
    pub(crate) fn payload(&self) -> &[u8] {
        self.message.as_ref().map_or(&[], |message| &message.payload)
    }

    /// Carries out a worker's decision.
    pub(crate) fn settle(mut self, settle: Settle) {
        self.decide(|unacknowledged, answer_to, message| match settle {
            Settle::Ack => Decision::Ack(answer_to),
            Settle::Requeue => unacknowledged.back(answer_to, message),
            Settle::Later(delay) => match unacknowledged.back(answer_to, message) {
                Decision::Nak(answer_to) => Decision::Later(answer_to, delay),
                elsewhere => elsewhere,
            },
            Settle::Forward(worker) => Decision::Forward(answer_to, Box::new(message), Some(worker)),
            // From its own queue it would come back to this worker alone.
            Settle::Unclaimed if unacknowledged.is_mine_alone(&message) => {
                Decision::Forward(answer_to, Box::new(message), None)
            }
            Settle::Unclaimed => {
                unacknowledged.note_given_back();
                Decision::Nak(answer_to)
            }
        });
    }

    /// Gives it back for somebody else, not before `delay`.
    pub(crate) fn leave_for(mut self, delay: Duration) {
        self.decide(|_, answer_to, _| Decision::Later(answer_to, delay));
    }

    /// Takes it out for good: nobody can read it.
    pub(crate) fn discard(mut self) {
        self.decide(|_, answer_to, _| Decision::Drop(answer_to));
    }

    fn decide(&mut self, decision: impl FnOnce(&Unacknowledged, Subject, Message) -> Decision) {
        let Some(message) = self.message.take() else { return };
        let Some(held) = self.unacknowledged.lock().remove(&self.id) else { return };
        if held.incarnation != self.unacknowledged.server.losses.incarnation() {
            return;
        }
        // The task ends only after the last hold is gone.
        let _sent = self.unacknowledged.decisions.send(decision(&self.unacknowledged, held.answer_to, message));
    }
}

impl Drop for AckHandle {
    fn drop(&mut self) {
        self.decide(Unacknowledged::back);
    }
}

async fn write(
    server: Arc<Server>,
    waiting: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Decision>>>,
    unacknowledged: Weak<Unacknowledged>,
    ack_wait: Duration,
) {
    // Only one run at a time asks for it. The server misses what was in hand at a panic, and gives it to others.
    let mut waiting = waiting.lock().await;
    let mut told = tokio::time::Instant::now();
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut forwards = JoinSet::new();
    loop {
        tokio::select! {
            count = waiting.recv_many(&mut batch, BATCH_MAX) => {
                if count == 0 {
                    break;
                }
                // After a reconnect nothing is said before it is known that the stream is still the same.
                let checked = tokio::time::timeout(CHECK_TIMEOUT, server.checked()).await;
                if checked.is_err() {
                    batch.clear();
                }
                for decision in batch.drain(..) {
                    apply_decision(&server, decision, &mut forwards).await;
                }
                while forwards.try_join_next().is_some() {}
            }
            () = tokio::time::sleep_until(told + ack_wait.min(server.ack_wait_min()) / 6) => {
                told = tokio::time::Instant::now();
                if !server.is_checked() {
                    continue;
                }
                let ack_wait = ack_wait.min(server.ack_wait_min());
                let silent = unacknowledged.upgrade().map(|unacknowledged| unacknowledged.silent_for(ack_wait / 3));
                for answer_to in silent.into_iter().flatten() {
                    tell(&server, answer_to, b"+WPI".to_vec()).await;
                }
            }
        }
    }
    forwards.join_all().await;
    // Without the server a flush does not end, and would keep the connection.
    if let Err(error) = server.answer(async { server.client.flush().await.map_err(unavailable) }).await {
        tracing::debug!(target: super::LOG, %error, "acknowledgements may be lost: the items come again");
    }
}

async fn apply_decision(server: &Arc<Server>, decision: Decision, forwards: &mut JoinSet<()>) {
    match decision {
        Decision::Ack(answer_to) => tell(server, answer_to, b"+ACK".to_vec()).await,
        Decision::Nak(answer_to) => tell(server, answer_to, b"-NAK".to_vec()).await,
        Decision::Later(answer_to, delay) => {
            tell(server, answer_to, format!("-NAK {{\"delay\":{}}}", delay.as_nanos()).into_bytes()).await;
        }
        Decision::Drop(answer_to) => tell(server, answer_to, b"+TERM".to_vec()).await,
        Decision::Forward(answer_to, message, worker) => {
            let server = Arc::clone(server);
            forwards.spawn(async move {
                let verdict = if forward(&server, &message, worker).await { b"+ACK" } else { b"-NAK" };
                tell(&server, answer_to, verdict.to_vec()).await;
            });
        }
        Decision::Told(told) => {
            while forwards.join_next().await.is_some() {}
            match server.settled().await {
                // Whoever asked may have given up.
                Ok(()) => drop(told.send(())),
                Err(error) => tracing::debug!(target: super::LOG, %error, "acknowledgements may be lost"),
            }
        }
    }
}

/// The item is in its new queue before it leaves the old one. Meanwhile its owner may have put it somewhere else.
async fn forward(server: &Server, message: &Message, worker: Option<WorkerId>) -> bool {
    let Ok(item) = decode::<ActivityItem>(&message.payload) else { return false };
    server.publish_work(&[Dispatch { item, worker, again: true }]).await.is_ok()
}

async fn tell(server: &Server, answer_to: Subject, verdict: Vec<u8>) {
    if let Err(error) = server.client.publish(answer_to, verdict.into()).await {
        tracing::debug!(target: super::LOG, %error, "an acknowledgement is lost: the item comes again");
    }
}
