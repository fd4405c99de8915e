//! What all parts of a JetStream broker share: the connection, the names, the streams and the consumers.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::ConsumerCreateStrictErrorKind;
use async_nats::jetstream::{Context, ErrorCode};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::connection::Link;
use super::losses::Losses;
use super::options::JetStreamOptions;
use super::outbox::Outbox;
use super::refused_work::Uptake;
use super::subjects::{Lane, Subjects};
use super::troubles::Troubles;
use super::wire::TagBody;
use crate::Error;

/// Longest wait for one answer of the server.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most publishes that wait for their acknowledgement at once.
const PUBLISHES_IN_FLIGHT_MAX: usize = 8_192;
/// Items of one consumer that workers may hold at once.
const ACK_PENDING_MAX: i64 = 100_000;
/// Pull requests of one consumer that may wait at once.
const WAITING_MAX: i64 = 8_192;
/// The server forgets a worker that has not pulled for so long. One that is full does not pull: its activities may be long.
const WORKER_GONE_AFTER: Duration = Duration::from_secs(24 * 3_600);
/// A shorter time to acknowledge is not kept up with.
const ACK_WAIT_MIN_MS: u64 = 60;
/// How long a consumer that was seen is taken to be there still.
const LANE_KNOWN_FOR: Duration = Duration::from_secs(300);

/// What waits in a lane.
pub(crate) struct Backlog {
    /// Items that were never handed out.
    pub(crate) pending: u64,
    /// Items that were handed out and are not settled: held by workers, or given back.
    pub(crate) unsettled: usize,
    /// Requests of workers that have room.
    pub(crate) requests: usize,
}

/// Shared by a broker, its sources and its tasks.
pub(crate) struct Hub {
    pub(crate) client: Client,
    pub(crate) js: Context,
    pub(crate) subjects: Subjects,
    pub(crate) options: JetStreamOptions,
    pub(crate) link: watch::Receiver<Link>,
    pub(crate) outbox: Outbox,
    pub(crate) losses: Losses,
    pub(crate) troubles: Arc<Troubles>,
    /// Whether the stream of work takes what it is offered.
    pub(crate) uptake: Uptake,
    /// Permits to publish work.
    pub(crate) publishes: Semaphore,
    /// The highest sequence that the stream of work has acknowledged to this process.
    pub(crate) acknowledged: AtomicU64,
    ack_wait_min_ms: AtomicU64,
    /// Consumers that are there, and when that was seen.
    lanes: Mutex<HashMap<Lane, Instant>>,
    /// Keeps one process from creating streams many times at once.
    pub(crate) creating: tokio::sync::Mutex<()>,
}

impl Hub {
    pub(crate) fn new(
        client: Client,
        link: watch::Receiver<Link>,
        subjects: Subjects,
        options: JetStreamOptions,
    ) -> Self {
        let troubles = Arc::new(Troubles::default());
        let outbox = Outbox::start(client.clone(), Arc::clone(&troubles));
        // Acknowledgements are bounded by `publishes`; the bound of the library must never be met before.
        let js = async_nats::jetstream::ContextBuilder::new()
            .timeout(ANSWER_TIMEOUT)
            .max_ack_inflight(PUBLISHES_IN_FLIGHT_MAX * 16)
            .build(client.clone());
        Self {
            client,
            js,
            subjects,
            options,
            link,
            outbox,
            losses: Losses::default(),
            troubles,
            uptake: Uptake::default(),
            publishes: Semaphore::new(PUBLISHES_IN_FLIGHT_MAX),
            acknowledged: AtomicU64::new(0),
            ack_wait_min_ms: AtomicU64::new(u64::MAX),
            lanes: Mutex::default(),
            creating: tokio::sync::Mutex::default(),
        }
    }

    /// Whether the connection stands.
    pub(crate) fn is_up(&self) -> bool {
        self.link.borrow().up
    }

    /// Waits until the connection stands.
    pub(crate) async fn up(&self) {
        let mut link = self.link.clone();
        // The sender lives as long as the client.
        let _up = link.wait_for(|link| link.up).await;
    }

    /// Bounds a wait for an answer. One that was asked for on a connection that is gone never comes.
    pub(crate) async fn answer<T>(&self, wait: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let mut link = self.link.clone();
        let asked_on = *link.borrow_and_update();
        tokio::select! {
            answer = within(ANSWER_TIMEOUT, wait) => answer,
            _ = link.wait_for(|now| *now != asked_on) => Err(Error::Unavailable("the connection is lost".to_owned())),
        }
    }

    /// For what a source that ends would still say: `None` when the server is away, goes away or does not answer in time.
    pub(crate) async fn while_up<T>(&self, limit: Duration, wait: impl Future<Output = T>) -> Option<T> {
        let mut link = self.link.clone();
        let asked_on = *link.borrow_and_update();
        if !asked_on.up {
            return None;
        }
        tokio::select! {
            done = tokio::time::timeout(limit, wait) => done.ok(),
            _ = link.wait_for(|now| *now != asked_on) => None,
        }
    }

    /// Returns when the server has handled all that was sent so far on this connection.
    pub(crate) async fn settled(&self) -> Result<(), Error> {
        let trip = async {
            let inbox = self.client.new_inbox();
            let mut answers = self.client.subscribe(inbox.clone()).await.map_err(unavailable)?;
            self.client.publish(inbox, outlast_core::encode(&()).into()).await.map_err(unavailable)?;
            futures::StreamExt::next(&mut answers).await.ok_or_else(|| Error::Unavailable("closed".to_owned()))
        };
        self.answer(trip).await.map(drop)
    }

    /// Creates the consumers of these lanes unless they are known, and tells workers of new tags.
    pub(crate) async fn prepare(&self, lanes: BTreeSet<Lane>) -> Result<(), Error> {
        let unknown = {
            let known = self.lock_lanes();
            let is_known = |lane: &Lane| known.get(lane).is_some_and(|seen| seen.elapsed() < LANE_KNOWN_FOR);
            lanes.into_iter().filter(|lane| !is_known(lane)).collect::<Vec<_>>()
        };
        for lane in unknown {
            self.create_lane(&lane).await?;
            let body = outlast_core::encode(&TagBody { consumer: lane.consumer() });
            self.outbox.send(self.subjects.tags(), body);
        }
        Ok(())
    }

    /// Creates the consumer of a lane unless it is there. Gives the time in which it wants to hear from who holds an item.
    pub(crate) async fn create_lane(&self, lane: &Lane) -> Result<Duration, Error> {
        let (stream, config) = (self.subjects.work_stream(), self.lane_config(lane));
        let create = async { Ok(self.js.create_consumer_strict_on_stream(config, stream.clone()).await) };
        let ack_wait = match self.answer(create).await? {
            Ok(consumer) => consumer.cached_info().config.ack_wait,
            Err(error) if error.kind() == ConsumerCreateStrictErrorKind::AlreadyExists => {
                // It keeps its time to acknowledge, so that nodes with different options do not take turns.
                let found = self.set_consumer_right(lane).await?;
                found.ok_or_else(|| Error::Unavailable("the consumer goes away".to_owned()))?
            }
            Err(error) => {
                return Err(match error.kind() {
                    ConsumerCreateStrictErrorKind::JetStream(error) if is_full(&error) => Error::Unusable(format!(
                        "the server allows no more consumers: use fewer tags or raise its limit ({error})"
                    )),
                    _ => unavailable(error),
                });
            }
        };
        self.lock_lanes().insert(lane.clone(), Instant::now());
        Ok(ack_wait)
    }

    /// What the server says of a lane at this moment.
    pub(crate) async fn backlog(&self, lane: &Lane) -> Result<Backlog, Error> {
        let (consumer, stream) = (lane.consumer(), self.subjects.work_stream());
        let find = self.js.get_consumer_from_stream::<pull::Config, _, _>(consumer, stream).await;
        let found = find.map_err(unavailable)?;
        let info = found.cached_info();
        Ok(Backlog { pending: info.num_pending, unsettled: info.num_ack_pending, requests: info.num_waiting })
    }

    pub(crate) fn lane_config(&self, lane: &Lane) -> pull::Config {
        let inactive_threshold = match lane {
            // Those of tags show the backlog to whatever starts workers: they stay while items wait.
            Lane::Tag(_) | Lane::Session(_) => Duration::ZERO,
            Lane::Worker(_) => WORKER_GONE_AFTER,
        };
        pull::Config {
            durable_name: Some(lane.consumer()),
            filter_subject: self.subjects.lane(lane),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.options.ack_wait,
            // After the last delivery an item would stay for ever: attempts are counted in the store.
            max_deliver: -1,
            max_ack_pending: ACK_PENDING_MAX,
            max_waiting: WAITING_MAX,
            inactive_threshold,
            ..pull::Config::default()
        }
    }

    /// Consumers that this process uses.
    pub(crate) fn known_lanes(&self) -> Vec<Lane> {
        self.lock_lanes().keys().cloned().collect()
    }

    /// Somebody may have shortened it since it was asked for.
    pub(crate) fn note_ack_wait(&self, ack_wait: Duration) {
        let ms = u64::try_from(ack_wait.as_millis()).unwrap_or(u64::MAX);
        self.ack_wait_min_ms.fetch_min(ms.max(ACK_WAIT_MIN_MS), Ordering::Relaxed);
    }

    /// The shortest time in which a consumer wants to hear from who holds an item.
    pub(crate) fn ack_wait_min(&self) -> Duration {
        Duration::from_millis(self.ack_wait_min_ms.load(Ordering::Relaxed))
    }

    /// The consumer of this lane is gone, as far as is known.
    pub(crate) fn forget_lane(&self, lane: &Lane) {
        self.lock_lanes().remove(lane);
    }

    /// All consumers may be gone.
    pub(crate) fn forget_lanes(&self) {
        self.lock_lanes().clear();
    }

    /// Notes what the stream of work acknowledged.
    pub(crate) fn note_acknowledged(&self, sequence: u64) {
        self.acknowledged.fetch_max(sequence, Ordering::AcqRel);
        self.uptake.taken();
    }

    fn lock_lanes(&self) -> MutexGuard<'_, HashMap<Lane, Instant>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_full(error: &async_nats::jetstream::Error) -> bool {
    error.error_code() == ErrorCode::MAXIMUM_CONSUMERS_LIMIT
}

/// Bounds a wait for the server.
pub(crate) async fn within<T>(limit: Duration, wait: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(limit, wait)
        .await
        .unwrap_or_else(|_| Err(Error::Unavailable("the server does not answer".to_owned())))
}

pub(crate) fn unavailable(error: impl std::error::Error) -> Error {
    Error::Unavailable(error.to_string())
}
