//! Keeps requests for work standing at the server, as many as the worker has room for, and lays what comes on its buffer.

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_nats::header::HeaderMap;
use async_nats::{Message, StatusCode, Subscriber};
use futures::{FutureExt as _, StreamExt as _};
use outlast_core::{DecodeError, TagFilter, decode, encode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio::time::Interval;

use super::ack_subject::{AckSubject, was_handed_out};
use super::prefetch::{Fetched, PrefetchBuffer, Room};
use super::restarts::note_panic;
use super::server::{ANSWER_TIMEOUT, Server};
use super::subjects::WorkQueue;
use super::unacknowledged::Unacknowledged;
use crate::{Settle, WorkerProfile};

/// How long a request stands at the server: short enough that one of a dead worker takes no item for long, long enough that
/// idle workers cost the server next to nothing.
const REQUEST_LIFE: Duration = Duration::from_secs(5);
/// A request that was not heard of for so long is lost: its life, and two seconds for a slow network.
const REQUEST_LOST_AFTER: Duration = Duration::from_secs(7);
/// Pause before a consumer that had a problem is asked again: most are being made anew, which takes a trip or two.
const PAUSE: Duration = Duration::from_millis(200);
/// Most items of unclaimed sessions that are asked for at once: each may take up room for a session.
const UNCLAIMED_MAX: usize = 16;
/// With at most so many queues each is asked for all that there is room for; with more, items that do not fit would go back
/// and forth.
const FULL_SHARES_MAX: usize = 4;
/// Most consumers that a worker pulls from: each has a request standing at the server. A worker of every tag that
/// meets more of them says so in the log.
const QUEUES_MAX: usize = 512;
/// Messages that are handled before new wishes are looked at: a cancelled wait must not last through a flood.
const BURST_MAX: usize = 256;
/// How often the puller looks after itself: a tenth of the shortest time that it watches.
const TICK: Duration = Duration::from_millis(100);
/// A message for newer nodes is offered again after this: a rolling upgrade replaces nodes within minutes, and each offer is one
/// delivery.
const NEWER_DELAY: Duration = Duration::from_secs(5);
/// Messages that may be on their way although nobody waits for them: more than a server sends before it hears of the end.
const DRAIN_SPARE: u64 = 16;
/// How long a closed puller waits for what is on its way: less than what a shutdown has for all its farewells.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A consumer that the worker pulls from.
struct Pulled {
    queue: WorkQueue,
    /// Its consumer is there.
    ready: bool,
    /// Items that the server owes us.
    asked: usize,
    heard: Instant,
    pause_until: Option<Instant>,
}

/// The task behind a source.
pub(crate) struct Puller {
    server: Arc<Server>,
    buffer: Arc<PrefetchBuffer>,
    unacknowledged: Arc<Unacknowledged>,
    inbox: String,
    messages: Subscriber,
    queues: Vec<Pulled>,
    by_consumer: HashMap<String, usize>,
    /// Queues that were learned of later.
    learned: mpsc::UnboundedReceiver<WorkQueue>,
    connects: u64,
    /// Messages that came, ends of requests included.
    received: u64,
    /// When the last of them came.
    heard: Instant,
}

/// The queues that a worker pulls from the beginning.
pub(crate) fn queues_of(profile: &WorkerProfile) -> BTreeSet<WorkQueue> {
    let named = match &profile.filter {
        TagFilter::Tags(tags) | TagFilter::DefaultAnd(tags) => tags.iter().map(|tag| Some(tag.as_str())).collect(),
        TagFilter::DefaultOnly | TagFilter::Any | TagFilter::None => Vec::new(),
    };
    let tags = named.into_iter().chain([None]).filter(|tag| profile.filter.matches(*tag));
    let mut queues: BTreeSet<WorkQueue> = tags.flat_map(|tag| [WorkQueue::tag(tag), WorkQueue::session(tag)]).collect();
    if profile.filter != TagFilter::None {
        queues.insert(WorkQueue::worker(&profile.id));
    }
    queues
}

impl Puller {
    pub(crate) async fn new(
        server: Arc<Server>,
        buffer: Arc<PrefetchBuffer>,
        unacknowledged: Arc<Unacknowledged>,
        queues: BTreeSet<WorkQueue>,
        learned: mpsc::UnboundedReceiver<WorkQueue>,
    ) -> Result<Self, crate::Error> {
        let inbox = server.client.new_inbox();
        let messages = server.client.subscribe(format!("{inbox}.*")).await.map_err(super::server::unavailable)?;
        let connects = server.link.borrow().connects;
        let by_consumer = HashMap::new();
        let mut puller = Self {
            server,
            buffer,
            unacknowledged,
            inbox,
            messages,
            queues: Vec::new(),
            by_consumer,
            learned,
            connects,
            received: 0,
            heard: Instant::now(),
        };
        queues.into_iter().for_each(|queue| puller.add(queue, true));
        Ok(puller)
    }

    fn add(&mut self, queue: WorkQueue, ready: bool) {
        let consumer = queue.consumer();
        if !self.by_consumer.contains_key(&consumer) {
            if self.queues.len() >= QUEUES_MAX {
                tracing::warn!(target: super::LOG, consumer, "a worker of every tag serves at most {QUEUES_MAX} consumers");
                return;
            }
            self.by_consumer.insert(consumer, self.queues.len());
            self.buffer.note_queue(queue.clone());
            self.queues.push(Pulled { queue, ready, asked: 0, heard: Instant::now(), pause_until: None });
        }
    }

    /// Pulls until the source is dropped.
    pub(crate) async fn run(mut self, mut closed: oneshot::Receiver<()>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            match AssertUnwindSafe(self.pull(&mut tick, &mut closed)).catch_unwind().await {
                Ok(()) => break,
                // The server misses the item that it panicked at, and gives it to others.
                Err(panic) => note_panic(&self.server.troubles, "pulling work", panic),
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.leave().await;
    }

    async fn pull(&mut self, tick: &mut Interval, closed: &mut oneshot::Receiver<()>) {
        loop {
            self.ask().await;
            tokio::select! {
                message = self.messages.next() => match message {
                    Some(message) => self.take_burst(message),
                    None => return,
                },
                () = self.buffer.wanted.notified() => {}
                Some(queue) = self.learned.recv() => self.add(queue, true),
                _ = tick.tick() => if self.look_after() {
                    self.listen_anew().await;
                },
                _ = &mut *closed => return,
            }
        }
    }

    /// Tops up the requests.
    async fn ask(&mut self) {
        if !self.server.is_checked() {
            return;
        }
        let room = self.buffer.room();
        if room.items == 0 {
            return;
        }
        let now = Instant::now();
        for index in 0..self.queues.len() {
            let share = self.share(&self.queues[index].queue, room);
            let pulled = &mut self.queues[index];
            if share == 0 || pulled.asked * 2 > share || pulled.pause_until.is_some_and(|until| now < until) {
                continue;
            }
            if !pulled.ready && !self.create(index).await {
                continue;
            }
            self.request(index, share).await;
        }
    }

    /// How many items of a queue may be on their way.
    fn share(&self, queue: &WorkQueue, room: Room) -> usize {
        let all = if self.queues.len() <= FULL_SHARES_MAX {
            room.items
        } else {
            (room.items * FULL_SHARES_MAX / self.queues.len()).max(1)
        };
        match queue {
            WorkQueue::Session(_) if room.sessions => all.min(UNCLAIMED_MAX),
            WorkQueue::Session(_) => 0,
            WorkQueue::Tag(_) | WorkQueue::Worker(_) => all,
        }
    }

    async fn create(&mut self, index: usize) -> bool {
        let pulled = &mut self.queues[index];
        match self.server.create_queue(&pulled.queue).await {
            Ok(_) => pulled.ready = true,
            Err(error) => {
                tracing::debug!(target: super::LOG, %error, queue = ?pulled.queue, "a consumer cannot be made");
                self.server.losses.look_now();
                pulled.pause_until = Some(Instant::now() + PAUSE);
            }
        }
        pulled.ready
    }

    async fn request(&mut self, index: usize, share: usize) {
        let pulled = &mut self.queues[index];
        let batch = share - pulled.asked;
        let body = format!("{{\"batch\":{batch},\"expires\":{}}}", REQUEST_LIFE.as_nanos());
        let (subject, answer_to) = (self.server.subjects.next(&pulled.queue), format!("{}.{index}", self.inbox));
        if self.server.client.publish_with_reply(subject, answer_to, body.into()).await.is_ok() {
            pulled.asked += batch;
            pulled.heard = Instant::now();
        }
    }

    /// Handles what has arrived.
    fn take_burst(&mut self, first: Message) {
        self.take(first);
        for _ in 1..BURST_MAX {
            let Some(Some(message)) = futures::FutureExt::now_or_never(self.messages.next()) else { break };
            self.take(message);
        }
    }

    fn take(&mut self, message: Message) {
        self.received += 1;
        self.heard = Instant::now();
        if let Some(status) = message.status {
            self.take_status(status, &message);
            return;
        }
        let Some(origin) = message.reply.as_deref().and_then(AckSubject::parse) else { return };
        let index = self.by_consumer.get(origin.consumer).copied();
        let queue = index.map(|index| &self.queues[index].queue);
        let unclaimed = matches!(queue, Some(WorkQueue::Session(_)));
        if matches!(queue, Some(WorkQueue::Worker(_))) {
            self.buffer.note_own(origin.pending);
        }
        let (published, redelivered) = (origin.published, was_handed_out(&message));
        if let Some(pulled) = index.and_then(|index| self.queues.get_mut(index)) {
            pulled.asked = pulled.asked.saturating_sub(1);
            pulled.heard = Instant::now();
        }
        let Some(hold) = self.unacknowledged.hold(message) else { return };
        match decode(hold.payload()) {
            Ok(item) => {
                let since = Instant::now();
                self.buffer.put(Fetched { item, hold, published, redelivered, unclaimed, since });
            }
            Err(DecodeError::Newer(version)) => {
                tracing::debug!(target: super::LOG, version, "an item is left for newer nodes");
                hold.leave_for(NEWER_DELAY);
            }
            Err(error @ (DecodeError::Empty | DecodeError::Malformed(_))) => {
                tracing::error!(target: super::LOG, %error, "an item that nobody can read is taken out of the stream");
                hold.discard();
            }
        }
    }

    /// The end of a request without all that it asked for.
    fn take_status(&mut self, status: StatusCode, message: &Message) {
        let index = message.subject.rsplit_once('.').and_then(|(_, index)| index.parse::<usize>().ok());
        let Some(pulled) = index.and_then(|index| self.queues.get_mut(index)) else { return };
        pulled.heard = Instant::now();
        if status == StatusCode::IDLE_HEARTBEAT {
            return;
        }
        if status == StatusCode::TIMEOUT {
            let left = message.headers.as_ref().and_then(pending).unwrap_or(pulled.asked);
            pulled.asked = pulled.asked.saturating_sub(left);
            return;
        }
        tracing::debug!(target: super::LOG, %status, queue = ?pulled.queue, "a request for work was refused");
        pulled.asked = 0;
        pulled.ready = false;
        pulled.pause_until = Some(Instant::now() + PAUSE);
        self.server.losses.look_now();
    }

    /// Gives up lost requests, and items that have been buffered for too long. Returns whether nothing at all arrives, although
    /// every request ends with a message.
    fn look_after(&mut self) -> bool {
        if !self.buffer.is_empty() {
            self.buffer.sweep();
        }
        let connects = self.server.link.borrow().connects;
        let new_connection = std::mem::replace(&mut self.connects, connects) != connects;
        let mut lost = false;
        for pulled in &mut self.queues {
            if new_connection || (pulled.asked > 0 && pulled.heard.elapsed() >= REQUEST_LOST_AFTER) {
                lost |= !new_connection;
                pulled.asked = 0;
                pulled.ready = false;
                pulled.pause_until = None;
            }
        }
        lost && self.heard.elapsed() >= REQUEST_LOST_AFTER
    }

    /// The server may have dropped the subscription, as when the user's rights were changed for a while. What it sent meanwhile
    /// comes again when it misses an acknowledgement.
    async fn listen_anew(&mut self) {
        tracing::warn!(target: super::LOG, "no answers to requests for work: subscribing again");
        let inbox = self.server.client.new_inbox();
        if let Ok(messages) = self.server.client.subscribe(format!("{inbox}.*")).await {
            (self.inbox, self.messages, self.received) = (inbox, messages, 0);
        }
        self.heard = Instant::now();
    }

    /// The server forgets the requests; what is on its way already goes back at once.
    async fn leave(mut self) {
        self.buffer.clear();
        let server = Arc::clone(&self.server);
        if server.while_up(DRAIN_TIMEOUT, self.drain()).await.is_none() {
            tracing::debug!(target: super::LOG, "items that were on their way come again when the server misses them");
        }
    }

    /// Unsubscribes without losing what the server has sent and this process has not read: the library forgets a
    /// subscription before the server does. So both are told to end it after the same number of messages. That number is at
    /// least what can be on its way, and messages of our own make up the difference.
    async fn drain(&mut self) {
        // Each request that stands may come to an end of its own besides what it brings.
        let on_the_way = 2 * self.queues.iter().map(|pulled| pulled.asked as u64).sum::<u64>() + DRAIN_SPARE;
        if self.messages.unsubscribe_after(self.received + on_the_way).await.is_err() {
            return;
        }
        let filler = format!("{}.end", self.inbox);
        for _ in 0..on_the_way {
            // When the connection is gone, what was on its way is too.
            let _lost = self.server.client.publish(filler.clone(), encode(&()).into()).await;
        }
        while let Some(message) = self.messages.next().await {
            if message.status.is_none()
                && let Some(hold) = self.unacknowledged.hold(message)
            {
                hold.settle(Settle::Requeue);
            }
        }
    }
}

fn pending(headers: &HeaderMap) -> Option<usize> {
    headers.get("Nats-Pending-Messages")?.as_str().parse().ok()
}

/// Tells the puller of a worker that takes every tag which queues there are, until it is gone.
pub(crate) async fn learn(server: Arc<Server>, queues: mpsc::UnboundedSender<WorkQueue>, every: Duration) {
    let mut told: Option<Subscriber> = server.client.subscribe(server.subjects.tags()).await.ok();
    let mut tick = tokio::time::interval(every);
    loop {
        tokio::select! {
            () = queues.closed() => return,
            _ = tick.tick() => {
                let list = tokio::time::timeout(ANSWER_TIMEOUT, list(&server, &queues)).await;
                if list.is_err() {
                    tracing::debug!(target: super::LOG, "the consumers cannot be listed");
                }
            }
            Some(message) = next(&mut told) => {
                if let Ok(body) = decode::<super::wire::TagBody>(&message.payload) {
                    offer(&queues, &body.consumer);
                }
            }
        }
    }
}

async fn next(told: &mut Option<Subscriber>) -> Option<Message> {
    match told {
        Some(told) => told.next().await,
        None => std::future::pending().await,
    }
}

async fn list(server: &Server, queues: &mpsc::UnboundedSender<WorkQueue>) {
    let stream = server.js.get_stream_no_info(server.subjects.work_stream()).await;
    let Ok(stream) = stream else { return };
    let mut names = stream.consumer_names();
    while let Some(Ok(name)) = names.next().await {
        offer(queues, &name);
    }
}

fn offer(queues: &mpsc::UnboundedSender<WorkQueue>, consumer: &str) {
    match WorkQueue::of_consumer(consumer) {
        Some(queue @ (WorkQueue::Tag(_) | WorkQueue::Session(_))) => {
            // A puller that is gone needs no queues.
            let _sent = queues.send(queue);
        }
        Some(WorkQueue::Worker(_)) | None => {}
    }
}
