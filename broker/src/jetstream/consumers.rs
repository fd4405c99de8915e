//! Looks again and again at the consumers that this process uses, and sets right what somebody has edited: a consumer that
//! skips, holds back or stops is as good as none, and nobody is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{Config, Info, pull};
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind};

use super::hub::{Hub, unavailable};
use super::subjects::Lane;
use crate::Error;

/// How often each is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Pause between two: a process may use hundreds.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until it is aborted.
pub(crate) async fn run(hub: Arc<Hub>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for lane in hub.known_lanes() {
            hub.up().await;
            match hub.set_consumer_right(&lane).await {
                Ok(Some(_)) => {}
                Ok(None) => hub.forget_lane(&lane),
                Err(error) => {
                    tracing::debug!(target: super::LOG, %error, ?lane, "a consumer cannot be looked at");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Hub {
    /// Takes back what somebody has changed about a consumer. Gives the time in which it wants to hear from who holds an item;
    /// `None` when there is no such consumer: whoever pulls from it or publishes to it makes it again.
    pub(crate) async fn set_consumer_right(&self, lane: &Lane) -> Result<Option<Duration>, Error> {
        let (stream, name) = (self.subjects.work_stream(), lane.consumer());
        let find = async { Ok(self.js.get_consumer_from_stream::<Config, _, _>(&name, &stream).await) };
        let found = match self.answer(find).await? {
            Ok(found) => found.cached_info().clone(),
            Err(error) => return if is_gone(&error) { Ok(None) } else { Err(unavailable(error)) },
        };
        let ack_wait = found.config.ack_wait;
        self.note_ack_wait(ack_wait);
        let wanted = self.lane_config(lane);
        if is_right(&wanted, &found.config) {
            if self.is_ahead(&found).await? {
                self.troubles.note(format!("the consumer {name} is ahead of its stream: it is made anew"));
                self.replace_consumer(lane, &found).await?;
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
                _ => self.replace_consumer(lane, &found).await?,
            },
        }
        Ok(Some(ack_wait))
    }

    /// What it holds goes to others, who ask first whether it is still wanted.
    async fn replace_consumer(&self, lane: &Lane, found: &Info) -> Result<(), Error> {
        let delete = async {
            let stream = self.js.get_stream_no_info(&found.stream_name).await.map_err(unavailable)?;
            stream.delete_consumer(&found.name).await.map_err(unavailable)
        };
        self.answer(delete).await?;
        // Boxed, as it may find one that was made meanwhile and come here.
        Box::pin(self.create_lane(lane)).await.map(drop)
    }

    /// Whether it passes over what the stream gets next: the stream was set back and the consumer was not.
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

/// Whether it does what it must. Less room than it was given holds work back; more, and what is the operator's, may stay.
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
