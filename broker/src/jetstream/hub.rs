//! What all parts of a JetStream broker share: the connection, the names, the streams and the consumers.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Config, ConsumerCreateStrictErrorKind, DiscardPolicy, Info, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{Context, ErrorCode};
use tokio::sync::{Semaphore, watch};

use super::connection::Link;
use super::losses::Losses;
use super::options::JetStreamOptions;
use super::outbox::Outbox;
use super::subjects::{Lane, Subjects};
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
/// How long a consumer that was seen is taken to be there still.
const LANE_KNOWN_FOR: Duration = Duration::from_secs(300);
/// How long cancellations are kept for workers that cannot be reached.
const CONTROL_AGE_MAX: Duration = Duration::from_secs(600);
/// Most bytes of kept cancellations.
const CONTROL_BYTES_MAX: i64 = 8 << 20;

/// Shared by a broker, its sources and its tasks.
pub(crate) struct Hub {
    pub(crate) client: Client,
    pub(crate) js: Context,
    pub(crate) subjects: Subjects,
    pub(crate) options: JetStreamOptions,
    pub(crate) link: watch::Receiver<Link>,
    pub(crate) outbox: Outbox,
    pub(crate) losses: Losses,
    /// Permits to publish work.
    pub(crate) publishes: Semaphore,
    /// The highest sequence that the stream of work has acknowledged to this process.
    pub(crate) acknowledged: AtomicU64,
    /// Consumers that are there, and when that was seen.
    lanes: Mutex<HashMap<Lane, Instant>>,
    /// Keeps one process from creating streams many times at once.
    creating: tokio::sync::Mutex<()>,
}

impl Hub {
    pub(crate) fn new(
        client: Client,
        link: watch::Receiver<Link>,
        subjects: Subjects,
        options: JetStreamOptions,
        outbox: Outbox,
    ) -> Self {
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
            publishes: Semaphore::new(PUBLISHES_IN_FLIGHT_MAX),
            acknowledged: AtomicU64::new(0),
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

    /// The stream of work as it is; `None` when there is none.
    pub(crate) async fn look_at_work(&self) -> Result<Option<Info>, Error> {
        let name = self.subjects.work_stream();
        let found = self.answer(async { Ok(self.js.get_stream(name).await) }).await?;
        match found {
            Ok(stream) => Ok(Some(stream.cached_info().clone())),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                _ => Err(unavailable(error)),
            },
        }
    }

    /// Makes sure that both streams are there and are as they must be.
    pub(crate) async fn create_streams(&self) -> Result<(), Error> {
        let _alone = self.creating.lock().await;
        for config in [self.work_config(), self.control_config()] {
            let create = async { Ok(self.js.get_or_create_stream(config.clone()).await) };
            let found = self.answer(create).await?.map_err(no_stream)?;
            check(&config, &found.cached_info().config)?;
        }
        Ok(())
    }

    fn work_config(&self) -> Config {
        Config {
            name: self.subjects.work_stream(),
            subjects: vec![self.subjects.work()],
            retention: RetentionPolicy::WorkQueue,
            // An item has a subject of its own: while it is queued or held, a second copy is refused.
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            discard_new_per_subject: true,
            storage: if self.options.memory_storage { StorageType::Memory } else { StorageType::File },
            num_replicas: self.options.replicas,
            ..Config::default()
        }
    }

    fn control_config(&self) -> Config {
        Config {
            name: self.subjects.control_stream(),
            subjects: vec![self.subjects.control()],
            retention: RetentionPolicy::Limits,
            max_age: CONTROL_AGE_MAX,
            max_bytes: CONTROL_BYTES_MAX,
            storage: StorageType::Memory,
            num_replicas: self.options.replicas,
            ..Config::default()
        }
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
                self.ack_wait_of(&stream, lane).await?
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

    /// A consumer that is there keeps its options, so that nodes with different ones do not take turns.
    async fn ack_wait_of(&self, stream: &str, lane: &Lane) -> Result<Duration, Error> {
        let find = async { Ok(self.js.get_consumer_from_stream::<pull::Config, _, _>(lane.consumer(), stream).await) };
        let consumer = self.answer(find).await?.map_err(unavailable)?;
        Ok(consumer.cached_info().config.ack_wait)
    }

    fn lane_config(&self, lane: &Lane) -> pull::Config {
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
    }

    fn lock_lanes(&self) -> MutexGuard<'_, HashMap<Lane, Instant>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waiting gives an account no right to keep streams. Silence may end: servers of a cluster may still be finding each other.
fn no_stream(error: CreateStreamError) -> Error {
    let turn_on = "turn JetStream on in the server, or give the account JetStream limits";
    match error.kind() {
        CreateStreamErrorKind::JetStream(answer) if is_off(&answer) => Error::Unusable(format!("{error}: {turn_on}")),
        CreateStreamErrorKind::JetStreamUnavailable => Error::Unavailable(format!("{error}: {turn_on}")),
        _ => unavailable(error),
    }
}

fn is_off(error: &async_nats::jetstream::Error) -> bool {
    [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT].contains(&error.error_code())
}

fn is_full(error: &async_nats::jetstream::Error) -> bool {
    error.error_code() == ErrorCode::MAXIMUM_CONSUMERS_LIMIT
}

/// Old servers take options that they do not know and leave them out.
fn check(asked: &Config, found: &Config) -> Result<(), Error> {
    let same = asked.subjects == found.subjects
        && asked.retention == found.retention
        && asked.discard == found.discard
        && asked.discard_new_per_subject == found.discard_new_per_subject
        && (asked.max_messages_per_subject == found.max_messages_per_subject || asked.max_messages_per_subject == 0);
    if same {
        return Ok(());
    }
    Err(Error::Unusable(format!(
        "the stream {} is not as it must be: delete it, or use another namespace (asked for {asked:?}, found {found:?})",
        asked.name
    )))
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
