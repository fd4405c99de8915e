//! Keeps requests for work standing at the server, as many as the worker has room for, and lays what comes on its shelf.

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

use super::hub::{ANSWER_TIMEOUT, Hub};
use super::publish::was_handed_out;
use super::settle::Holdings;
use super::source::{Fetched, Room, Shelf};
use super::subjects::Lane;
use super::upkeep::note_panic;
use crate::{Settle, WorkerProfile};

/// How long a request stands at the server.
const REQUEST_LIFE: Duration = Duration::from_secs(5);
/// A request that was not heard of for so long is lost.
const REQUEST_LOST_AFTER: Duration = Duration::from_secs(7);
/// Pause before a consumer that had a problem is asked again.
const PAUSE: Duration = Duration::from_millis(200);
/// Most items of unclaimed sessions that are asked for at once: each may take up room for a session.
const UNCLAIMED_MAX: usize = 16;
/// With at most so many lanes each is asked for all that there is room for.
const FULL_SHARES_MAX: usize = 4;
/// Most consumers that a worker pulls from.
const LANES_MAX: usize = 512;
/// Messages that are handled before new wishes are looked at.
const BURST_MAX: usize = 256;
/// How often the puller looks after itself.
const TICK: Duration = Duration::from_millis(100);
/// A message for newer nodes is offered again after this.
const NEWER_DELAY: Duration = Duration::from_secs(5);
/// Messages that may be on their way although nobody waits for them.
const DRAIN_SPARE: u64 = 16;
/// How long a closed puller waits for what is on its way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A consumer that the worker pulls from.
struct Pulled {
    lane: Lane,
    /// Its consumer is there.
    ready: bool,
    /// Items that the server owes us.
    asked: usize,
    heard: Instant,
    pause_until: Option<Instant>,
}

/// The task behind a source.
pub(crate) struct Puller {
    hub: Arc<Hub>,
    shelf: Arc<Shelf>,
    holdings: Arc<Holdings>,
    inbox: String,
    messages: Subscriber,
    lanes: Vec<Pulled>,
    by_consumer: HashMap<String, usize>,
    /// Lanes that were learned of later.
    learned: mpsc::UnboundedReceiver<Lane>,
    connects: u64,
    /// Messages that came, ends of requests included.
    received: u64,
    /// When the last of them came.
    heard: Instant,
}

/// The lanes that a worker pulls from the beginning.
pub(crate) fn lanes_of(profile: &WorkerProfile) -> BTreeSet<Lane> {
    let named = match &profile.filter {
        TagFilter::Tags(tags) | TagFilter::DefaultAnd(tags) => tags.iter().map(|tag| Some(tag.as_str())).collect(),
        TagFilter::DefaultOnly | TagFilter::Any | TagFilter::None => Vec::new(),
    };
    let tags = named.into_iter().chain([None]).filter(|tag| profile.filter.matches(*tag));
    let mut lanes: BTreeSet<Lane> = tags.flat_map(|tag| [Lane::tag(tag), Lane::session(tag)]).collect();
    if profile.filter != TagFilter::None {
        lanes.insert(Lane::worker(&profile.id));
    }
    lanes
}

impl Puller {
    pub(crate) async fn new(
        hub: Arc<Hub>,
        shelf: Arc<Shelf>,
        holdings: Arc<Holdings>,
        lanes: BTreeSet<Lane>,
        learned: mpsc::UnboundedReceiver<Lane>,
    ) -> Result<Self, crate::Error> {
        let inbox = hub.client.new_inbox();
        let messages = hub.client.subscribe(format!("{inbox}.*")).await.map_err(super::hub::unavailable)?;
        let connects = hub.link.borrow().connects;
        let by_consumer = HashMap::new();
        let mut puller = Self {
            hub,
            shelf,
            holdings,
            inbox,
            messages,
            lanes: Vec::new(),
            by_consumer,
            learned,
            connects,
            received: 0,
            heard: Instant::now(),
        };
        lanes.into_iter().for_each(|lane| puller.add(lane, true));
        Ok(puller)
    }

    fn add(&mut self, lane: Lane, ready: bool) {
        let consumer = lane.consumer();
        if !self.by_consumer.contains_key(&consumer) {
            if self.lanes.len() >= LANES_MAX {
                tracing::warn!(target: super::LOG, consumer, "a worker of every tag serves at most {LANES_MAX} consumers");
                return;
            }
            self.by_consumer.insert(consumer, self.lanes.len());
            self.shelf.note_lane(lane.clone());
            self.lanes.push(Pulled { lane, ready, asked: 0, heard: Instant::now(), pause_until: None });
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
                Err(panic) => note_panic(&self.hub.troubles, "pulling work", panic),
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
                () = self.shelf.wanted.notified() => {}
                Some(lane) = self.learned.recv() => self.add(lane, true),
                _ = tick.tick() => if self.look_after() {
                    self.listen_anew().await;
                },
                _ = &mut *closed => return,
            }
        }
    }

    /// Tops up the requests.
    async fn ask(&mut self) {
        if !self.hub.is_checked() {
            return;
        }
        let room = self.shelf.room();
        if room.items == 0 {
            return;
        }
        let now = Instant::now();
        for index in 0..self.lanes.len() {
            let share = self.share(&self.lanes[index].lane, room);
            let pulled = &mut self.lanes[index];
            if share == 0 || pulled.asked * 2 > share || pulled.pause_until.is_some_and(|until| now < until) {
                continue;
            }
            if !pulled.ready && !self.create(index).await {
                continue;
            }
            self.request(index, share).await;
        }
    }

    /// How many items of a lane may be on their way.
    fn share(&self, lane: &Lane, room: Room) -> usize {
        let all = if self.lanes.len() <= FULL_SHARES_MAX {
            room.items
        } else {
            (room.items * FULL_SHARES_MAX / self.lanes.len()).max(1)
        };
        match lane {
            Lane::Session(_) if room.sessions => all.min(UNCLAIMED_MAX),
            Lane::Session(_) => 0,
            Lane::Tag(_) | Lane::Worker(_) => all,
        }
    }

    async fn create(&mut self, index: usize) -> bool {
        let pulled = &mut self.lanes[index];
        match self.hub.create_lane(&pulled.lane).await {
            Ok(_) => pulled.ready = true,
            Err(error) => {
                tracing::debug!(target: super::LOG, %error, lane = ?pulled.lane, "a consumer cannot be made");
                self.hub.losses.look_now();
                pulled.pause_until = Some(Instant::now() + PAUSE);
            }
        }
        pulled.ready
    }

    async fn request(&mut self, index: usize, share: usize) {
        let pulled = &mut self.lanes[index];
        let batch = share - pulled.asked;
        let body = format!("{{\"batch\":{batch},\"expires\":{}}}", REQUEST_LIFE.as_nanos());
        let (subject, answer_to) = (self.hub.subjects.next(&pulled.lane), format!("{}.{index}", self.inbox));
        if self.hub.client.publish_with_reply(subject, answer_to, body.into()).await.is_ok() {
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
        let Some(origin) = message.reply.as_deref().and_then(Origin::parse) else { return };
        let index = self.by_consumer.get(origin.consumer).copied();
        let lane = index.map(|index| &self.lanes[index].lane);
        let unclaimed = matches!(lane, Some(Lane::Session(_)));
        if matches!(lane, Some(Lane::Worker(_))) {
            self.shelf.note_own(origin.pending);
        }
        let (published, redelivered) = (origin.published, was_handed_out(&message));
        if let Some(pulled) = index.and_then(|index| self.lanes.get_mut(index)) {
            pulled.asked = pulled.asked.saturating_sub(1);
            pulled.heard = Instant::now();
        }
        let Some(hold) = self.holdings.hold(message) else { return };
        match decode(hold.payload()) {
            Ok(item) => {
                let since = Instant::now();
                self.shelf.put(Fetched { item, hold, published, redelivered, unclaimed, since });
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
        let Some(pulled) = index.and_then(|index| self.lanes.get_mut(index)) else { return };
        pulled.heard = Instant::now();
        if status == StatusCode::IDLE_HEARTBEAT {
            return;
        }
        if status == StatusCode::TIMEOUT {
            let left = message.headers.as_ref().and_then(pending).unwrap_or(pulled.asked);
            pulled.asked = pulled.asked.saturating_sub(left);
            return;
        }
        tracing::debug!(target: super::LOG, %status, lane = ?pulled.lane, "a request for work was refused");
        pulled.asked = 0;
        pulled.ready = false;
        pulled.pause_until = Some(Instant::now() + PAUSE);
        self.hub.losses.look_now();
    }

    /// Gives up requests that are lost, and items that lie for too long; says whether nothing at all is heard, although a
    /// request always ends with a message.
    fn look_after(&mut self) -> bool {
        if !self.shelf.is_empty() {
            self.shelf.sweep();
        }
        let connects = self.hub.link.borrow().connects;
        let new_connection = std::mem::replace(&mut self.connects, connects) != connects;
        let mut lost = false;
        for pulled in &mut self.lanes {
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
        tracing::warn!(target: super::LOG, "no answers to requests for work: they are subscribed to anew");
        let inbox = self.hub.client.new_inbox();
        if let Ok(messages) = self.hub.client.subscribe(format!("{inbox}.*")).await {
            (self.inbox, self.messages, self.received) = (inbox, messages, 0);
        }
        self.heard = Instant::now();
    }

    /// The server forgets the requests; what is on its way already goes back at once.
    async fn leave(mut self) {
        self.shelf.clear();
        let hub = Arc::clone(&self.hub);
        if hub.while_up(DRAIN_TIMEOUT, self.drain()).await.is_none() {
            tracing::debug!(target: super::LOG, "items that were on their way come again when the server misses them");
        }
    }

    /// Unsubscribes without losing what the server has sent and this process has not read: the library forgets a
    /// subscription before the server does. So both are told the same number of messages after which it ends, a number
    /// that what is on its way cannot exceed, and messages of our own fill it up.
    async fn drain(&mut self) {
        // Each request that stands may come to an end of its own besides what it brings.
        let on_the_way = 2 * self.lanes.iter().map(|pulled| pulled.asked as u64).sum::<u64>() + DRAIN_SPARE;
        if self.messages.unsubscribe_after(self.received + on_the_way).await.is_err() {
            return;
        }
        let filler = format!("{}.end", self.inbox);
        for _ in 0..on_the_way {
            // When the connection is gone, what was on its way is too.
            let _lost = self.hub.client.publish(filler.clone(), encode(&()).into()).await;
        }
        while let Some(message) = self.messages.next().await {
            if message.status.is_none()
                && let Some(hold) = self.holdings.hold(message)
            {
                hold.settle(Settle::Requeue);
            }
        }
    }
}

fn pending(headers: &HeaderMap) -> Option<usize> {
    headers.get("Nats-Pending-Messages")?.as_str().parse().ok()
}

/// What the server says of a message in the subject for its acknowledgement.
pub(crate) struct Origin<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) delivered: u64,
    published: u64,
    /// What the consumer still had for us when it was sent.
    pending: u64,
}

impl<'a> Origin<'a> {
    /// `$JS.ACK.stream.consumer.delivered.sequence.consumer sequence.time.pending`, newer with domain and account first.
    pub(crate) fn parse(subject: &'a str) -> Option<Self> {
        let parts: Vec<&str> = subject.strip_prefix("$JS.ACK.")?.split('.').collect();
        let parts = if parts.len() >= 9 { parts.get(2..)? } else { &parts };
        let &[_, consumer, delivered, _, _, published, pending, ..] = parts else { return None };
        let number = |text: &str| text.parse().ok();
        let (delivered, published, pending) = (number(delivered)?, number(published)?, number(pending)?);
        Some(Self { consumer, delivered, published, pending })
    }
}

/// Tells the puller of a worker that takes every tag which lanes there are, until it is gone.
pub(crate) async fn learn(hub: Arc<Hub>, lanes: mpsc::UnboundedSender<Lane>, every: Duration) {
    let mut told: Option<Subscriber> = hub.client.subscribe(hub.subjects.tags()).await.ok();
    let mut tick = tokio::time::interval(every);
    loop {
        tokio::select! {
            () = lanes.closed() => return,
            _ = tick.tick() => {
                let list = tokio::time::timeout(ANSWER_TIMEOUT, list(&hub, &lanes)).await;
                if list.is_err() {
                    tracing::debug!(target: super::LOG, "the consumers cannot be listed");
                }
            }
            Some(message) = next(&mut told) => {
                if let Ok(body) = decode::<super::wire::TagBody>(&message.payload) {
                    offer(&lanes, &body.consumer);
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

async fn list(hub: &Hub, lanes: &mpsc::UnboundedSender<Lane>) {
    let stream = hub.js.get_stream_no_info(hub.subjects.work_stream()).await;
    let Ok(stream) = stream else { return };
    let mut names = stream.consumer_names();
    while let Some(Ok(name)) = names.next().await {
        offer(lanes, &name);
    }
}

fn offer(lanes: &mpsc::UnboundedSender<Lane>, consumer: &str) {
    match Lane::of_consumer(consumer) {
        Some(lane @ (Lane::Tag(_) | Lane::Session(_))) => {
            // A puller that is gone needs no lanes.
            let _sent = lanes.send(lane);
        }
        Some(Lane::Worker(_)) | None => {}
    }
}
