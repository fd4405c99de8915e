//! The consumers of the stream of work: created when needed, and checked regularly to undo what somebody has edited. A consumer
//! that skips, holds back or stops is as good as none, and nobody would notice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{AckPolicy, Config, DeliverPolicy, Info, pull};
use async_nats::jetstream::stream::{ConsumerCreateStrictErrorKind, ConsumerError, ConsumerErrorKind};
use outlast_core::{Reason, WorkerId};
use tokio::time::Instant;

use super::server::{Server, unavailable};
use super::subjects::WorkQueue;
use super::wire::TagBody;
use crate::Error;

/// How often each is looked at: an edited or deleted consumer stands still for no longer than this and a second.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Pause between two: a process may use hundreds.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until it is aborted.
pub(crate) async fn run(server: Arc<Server>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for queue in server.known_queues() {
            server.up().await;
            match server.set_consumer_right(&queue).await {
                Ok(Some(_)) => {}
                Ok(None) => server.forget_queue(&queue),
                Err(error) => {
                    tracing::debug!(target: super::LOG, %error, ?queue, "a consumer cannot be looked at");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Items of one consumer that workers may hold at once: above what all slots of hundreds of workers take, since the server
/// stops delivering at it without a word.
const ACK_PENDING_MAX: i64 = 100_000;
/// Pull requests of one consumer that may wait at once: one for each worker of a tag, and the server refuses what is beyond.
const WAITING_MAX: i64 = 8_192;
/// The server forgets a worker that has not pulled for so long. One that is full does not pull: its activities may take hours.
const WORKER_GONE_AFTER: Duration = Duration::from_secs(24 * 3_600);
/// How long a consumer that was seen is taken to be there still: the watch finds a deletion within seconds, this is for what it
/// does not watch.
const CONSUMER_KNOWN_FOR: Duration = Duration::from_secs(300);

/// What waits in a queue.
pub(crate) struct Backlog {
    /// Items that were never handed out.
    pub(crate) pending: u64,
    /// Items that were handed out and are not settled: held by workers, or given back.
    pub(crate) unsettled: usize,
    /// Requests of workers that have room.
    pub(crate) requests: usize,
}

impl Server {
    /// Creates the consumers of these queues unless they are known, and tells workers of new tags.
    pub(crate) async fn prepare(&self, queues: BTreeSet<WorkQueue>) -> Result<(), Error> {
        let unknown = {
            let known = self.lock_queues();
            let is_known = |queue: &WorkQueue| known.get(queue).is_some_and(|seen| seen.elapsed() < CONSUMER_KNOWN_FOR);
            queues.into_iter().filter(|queue| !is_known(queue)).collect::<Vec<_>>()
        };
        for queue in unknown {
            self.create_queue(&queue).await?;
            let body = outlast_core::encode(&TagBody { consumer: queue.consumer() });
            self.outbox.send(self.subjects.tags(), body);
        }
        Ok(())
    }

    /// Creates the consumer of a queue if it is missing. Returns how long the holder of an item may stay silent.
    pub(crate) async fn create_queue(&self, queue: &WorkQueue) -> Result<Duration, Error> {
        let (stream, config) = (self.subjects.work_stream(), self.queue_config(queue));
        let create = async { Ok(self.js.create_consumer_strict_on_stream(config, stream.clone()).await) };
        let ack_wait = match self.answer(create).await? {
            Ok(consumer) => consumer.cached_info().config.ack_wait,
            Err(error) if error.kind() == ConsumerCreateStrictErrorKind::AlreadyExists => {
                // It keeps its time to acknowledge, so that nodes with different options do not take turns.
                let found = self.set_consumer_right(queue).await?;
                found.ok_or_else(|| Error::unavailable("the consumer goes away"))?
            }
            Err(error) => {
                return Err(match error.kind() {
                    ConsumerCreateStrictErrorKind::JetStream(answer) if is_full(&answer) => {
                        let advice = format!(
                            "the server allows no more consumers: use fewer tags or raise its limit ({answer})"
                        );
                        Error::unusable(Reason::because(advice, error))
                    }
                    _ => unavailable(error),
                });
            }
        };
        self.lock_queues().insert(queue.clone(), Instant::now());
        Ok(ack_wait)
    }

    /// Deletes what was brought to a dead worker alone. While the server is away that is left to the sweep of unused consumers.
    pub(crate) async fn delete_worker_queue(&self, worker: &WorkerId) -> Result<(), Error> {
        let queue = WorkQueue::worker(worker);
        self.forget_queue(&queue);
        if !self.is_up() {
            return Ok(());
        }
        let delete = async {
            let stream = self.js.get_stream_no_info(self.subjects.work_stream()).await.map_err(unavailable)?;
            // It may be gone already.
            let _gone = stream.delete_consumer(&queue.consumer()).await;
            stream.purge().filter(self.subjects.queue(&queue)).await.map_err(unavailable)
        };
        self.answer(delete).await.map(drop)
    }

    /// What the server says of a queue at this moment.
    pub(crate) async fn backlog(&self, queue: &WorkQueue) -> Result<Backlog, Error> {
        let (consumer, stream) = (queue.consumer(), self.subjects.work_stream());
        let find = self.js.get_consumer_from_stream::<pull::Config, _, _>(consumer, stream).await;
        let found = find.map_err(unavailable)?;
        let info = found.cached_info();
        Ok(Backlog { pending: info.num_pending, unsettled: info.num_ack_pending, requests: info.num_waiting })
    }

    pub(crate) fn queue_config(&self, queue: &WorkQueue) -> pull::Config {
        let inactive_threshold = match queue {
            // Those of tags show the backlog to whatever starts workers: they stay while items wait.
            WorkQueue::Tag(_) | WorkQueue::Session(_) => Duration::ZERO,
            WorkQueue::Worker(_) => WORKER_GONE_AFTER,
        };
        pull::Config {
            durable_name: Some(queue.consumer()),
            filter_subject: self.subjects.queue(queue),
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

    /// Reverts what somebody has changed about a consumer. Returns how long the holder of an item may stay silent, or
    /// `None` if there is no such consumer: whoever pulls from it or publishes to it creates it again.
    pub(crate) async fn set_consumer_right(&self, queue: &WorkQueue) -> Result<Option<Duration>, Error> {
        let (stream, name) = (self.subjects.work_stream(), queue.consumer());
        let find = async { Ok(self.js.get_consumer_from_stream::<Config, _, _>(&name, &stream).await) };
        let found = match self.answer(find).await? {
            Ok(found) => found.cached_info().clone(),
            Err(error) => return if is_gone(&error) { Ok(None) } else { Err(unavailable(error)) },
        };
        let ack_wait = found.config.ack_wait;
        self.note_ack_wait(ack_wait);
        let wanted = self.queue_config(queue);
        if is_right(&wanted, &found.config) {
            if self.is_ahead(&found).await? {
                self.troubles.note(format!("the consumer {name} is ahead of its stream: it is made anew"));
                self.replace_consumer(queue, &found).await?;
            }
            return Ok(Some(ack_wait));
        }
        self.troubles.note(format!("somebody has edited the consumer {name}: it was set right; leave it as it is"));
        let Config { num_replicas, metadata, .. } = found.config.clone();
        let mended = pull::Config { ack_wait, num_replicas, metadata, ..wanted };
        let update = async { Ok(self.js.create_consumer_on_stream(mended, &stream).await) };
        match self.answer(update).await? {
            Ok(_) => {}
            // What was made in another way under this name cannot be updated.
            Err(error) => match error.kind() {
                ConsumerErrorKind::TimedOut | ConsumerErrorKind::Request => return Err(unavailable(error)),
                _ => self.replace_consumer(queue, &found).await?,
            },
        }
        Ok(Some(ack_wait))
    }

    /// What it holds goes to others, who ask first whether it is still wanted.
    async fn replace_consumer(&self, queue: &WorkQueue, found: &Info) -> Result<(), Error> {
        let delete = async {
            let stream = self.js.get_stream_no_info(&found.stream_name).await.map_err(unavailable)?;
            stream.delete_consumer(&found.name).await.map_err(unavailable)
        };
        self.answer(delete).await?;
        // Boxed, as it may find one that was made meanwhile and come here.
        Box::pin(self.create_queue(queue)).await.map(drop)
    }

    /// Whether it would skip the next messages because the stream was set back and the consumer was not.
    async fn is_ahead(&self, found: &Info) -> Result<bool, Error> {
        if found.delivered.stream_sequence <= self.acknowledged.load(Ordering::Acquire) {
            return Ok(false);
        }
        // Others publish too; what the stream has now is at least what the consumer had then.
        let stream = self.look_at(&self.work_config()).await?;
        Ok(stream.is_some_and(|stream| found.delivered.stream_sequence > stream.state.last_sequence))
    }
}

fn is_gone(error: &ConsumerError) -> bool {
    matches!(error.kind(), ConsumerErrorKind::JetStream(error) if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}

/// Whether it does its job. Tighter limits than ours hold work back; looser ones and the operator's own settings may stay.
fn is_right(wanted: &pull::Config, found: &Config) -> bool {
    let held_back = found.max_ack_pending > 0 && found.max_ack_pending < wanted.max_ack_pending;
    let asked_less = found.max_batch > 0 || found.max_bytes > 0 || found.max_expires > Duration::ZERO;
    let goes_early = match (wanted.inactive_threshold, found.inactive_threshold) {
        (_, Duration::ZERO) => false,
        (Duration::ZERO, _) => true,
        (wanted, found) => found < wanted,
    };
    found.deliver_subject.is_none()
        && found.filter_subject == wanted.filter_subject
        && found.filter_subjects.is_empty()
        && found.ack_policy == wanted.ack_policy
        && found.max_deliver <= 0
        && found.backoff.is_empty()
        && found.pause_until.is_none()
        && !found.headers_only
        && found.rate_limit == 0
        && !held_back
        && !asked_less
        && !goes_early
}

fn is_full(error: &async_nats::jetstream::Error) -> bool {
    error.error_code() == ErrorCode::MAXIMUM_CONSUMERS_LIMIT
}
