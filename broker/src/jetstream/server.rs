//! What all parts of a JetStream broker share: the connection, the names, the streams and the consumers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::connection::Link;
use super::loss_alarm::LossAlarm;
use super::options::JetStreamOptions;
use super::outbox::Outbox;
use super::subjects::{Subjects, WorkQueue};
use super::troubles::Troubles;
use super::uptake::Uptake;
use crate::Error;
use outlast_core::Reason;

/// Longest wait for one answer of the server: as long as a change of leaders takes. After it the answer is asked for again.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most publishes that wait for their acknowledgement at once: eight pipelines. Beyond it publishers wait.
const PUBLISHES_IN_FLIGHT_MAX: usize = 8_192;
/// We could not keep up with a shorter acknowledgement timeout.
const ACK_WAIT_MIN_MS: u64 = 60;

/// Shared by a broker, its sources and its tasks.
pub(crate) struct Server {
    pub(crate) client: Client,
    pub(crate) js: Context,
    pub(crate) subjects: Subjects,
    pub(crate) options: JetStreamOptions,
    pub(crate) link: watch::Receiver<Link>,
    pub(crate) outbox: Outbox,
    pub(crate) losses: LossAlarm,
    pub(crate) troubles: Arc<Troubles>,
    /// Whether the stream of work takes what it is offered.
    pub(crate) uptake: Uptake,
    /// Permits to publish work.
    pub(crate) publishes: Semaphore,
    /// The highest sequence that the stream of work has acknowledged to this process.
    pub(crate) acknowledged: AtomicU64,
    ack_wait_min_ms: AtomicU64,
    /// Consumers that are there, and when that was seen.
    queues: Mutex<HashMap<WorkQueue, Instant>>,
    /// Keeps one process from creating streams many times at once.
    pub(crate) creating: tokio::sync::Mutex<()>,
}

impl Server {
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
            losses: LossAlarm::default(),
            troubles,
            uptake: Uptake::default(),
            publishes: Semaphore::new(PUBLISHES_IN_FLIGHT_MAX),
            acknowledged: AtomicU64::new(0),
            ack_wait_min_ms: AtomicU64::new(u64::MAX),
            queues: Mutex::default(),
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

    /// Waits until the connection stands and the stream was looked at on it.
    pub(crate) async fn checked(&self) {
        let mut link = self.link.clone();
        let mut checked = self.losses.checked.subscribe();
        loop {
            let now = *link.borrow_and_update();
            if now.up && *checked.borrow_and_update() == now.connects {
                return;
            }
            tokio::select! {
                changed = link.changed() => if changed.is_err() { return },
                _ = checked.changed() => {}
            }
        }
    }

    /// Whether `checked` would return at once.
    pub(crate) fn is_checked(&self) -> bool {
        let now = *self.link.borrow();
        now.up && *self.losses.checked.borrow() == now.connects
    }

    /// Bounds a wait for an answer. One that was asked for on a connection that is gone never comes.
    pub(crate) async fn answer<T>(&self, wait: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let mut link = self.link.clone();
        let asked_on = *link.borrow_and_update();
        tokio::select! {
            answer = within(ANSWER_TIMEOUT, wait) => answer,
            _ = link.wait_for(|now| *now != asked_on) => Err(Error::unavailable("the connection is lost")),
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
            futures::StreamExt::next(&mut answers).await.ok_or_else(|| Error::unavailable("closed"))
        };
        self.answer(trip).await.map(drop)
    }

    /// Consumers that this process uses.
    pub(crate) fn known_queues(&self) -> Vec<WorkQueue> {
        self.lock_queues().keys().cloned().collect()
    }

    /// Somebody may have shortened it since it was asked for.
    pub(crate) fn note_ack_wait(&self, ack_wait: Duration) {
        let ms = u64::try_from(ack_wait.as_millis()).unwrap_or(u64::MAX);
        self.ack_wait_min_ms.fetch_min(ms.max(ACK_WAIT_MIN_MS), Ordering::Relaxed);
    }

    /// The shortest silence that a consumer allows the holder of an item.
    pub(crate) fn ack_wait_min(&self) -> Duration {
        Duration::from_millis(self.ack_wait_min_ms.load(Ordering::Relaxed))
    }

    /// The consumer of this queue is gone, as far as is known.
    pub(crate) fn forget_queue(&self, queue: &WorkQueue) {
        self.lock_queues().remove(queue);
    }

    /// All consumers may be gone.
    pub(crate) fn forget_queues(&self) {
        self.lock_queues().clear();
    }

    /// Notes what the stream of work acknowledged.
    pub(crate) fn note_acknowledged(&self, sequence: u64) {
        self.acknowledged.fetch_max(sequence, Ordering::AcqRel);
        self.uptake.taken();
    }

    pub(crate) fn lock_queues(&self) -> MutexGuard<'_, HashMap<WorkQueue, Instant>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bounds a wait for the server.
pub(crate) async fn within<T>(limit: Duration, wait: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(limit, wait).await.unwrap_or_else(|_| Err(Error::unavailable("the server does not answer")))
}

pub(crate) fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::unavailable(Reason::of(error))
}
