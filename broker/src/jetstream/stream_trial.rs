//! Notices that the stream of work takes nothing although the connection stands, and mends it.
//!
//! After a full disk nats-server refuses every write to a stream until the stream is deleted or the server restarted, also
//! when there is room again, and publishers see no more than missing acknowledgements.

use std::error::Error as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::Info;
use tokio::time::Instant;

use super::server::{Server, unavailable, within};
use super::uptake::Offer;
use crate::Error;

/// How long the stream may take for the message by which it is tried: longer than a write to a slow disk.
const TRIAL_MAX: Duration = Duration::from_secs(3);

/// What came of a trial.
enum Trial {
    Taken,
    /// The server has a bound on what it keeps.
    Full(String),
    Refused(String),
}

impl Server {
    /// Work is offered to the stream.
    pub(crate) fn offer(&self) -> Offer {
        let acknowledged = self.uptake.acknowledged.load(Ordering::Relaxed);
        Offer { begun: Instant::now(), acknowledged, link: *self.link.borrow() }
    }

    /// It was not taken. Without the connection that says nothing about the stream.
    pub(crate) fn not_taken(&self, offer: Offer) {
        if !offer.link.up || *self.link.borrow() != offer.link {
            return;
        }
        let mut refused = self.uptake.lock();
        // Others may have got theirs acknowledged meanwhile.
        let is_silent = self.uptake.acknowledged.load(Ordering::Relaxed) == offer.acknowledged;
        refused.since.get_or_insert(if is_silent { offer.begun } else { Instant::now() });
        self.uptake.is_refused.store(true, Ordering::Relaxed);
    }

    /// Tries a stream that has taken nothing for some seconds, and makes it anew if it does not take a message of ours
    /// either; says whether it did.
    pub(crate) async fn relieve(&self, found: &Info) -> Result<bool, Error> {
        if !self.uptake.is_due() {
            return Ok(false);
        }
        match self.try_stream().await? {
            Trial::Taken => {
                self.uptake.clear();
                Ok(false)
            }
            // A new stream would have no more room, and what waits in this one would begin again.
            Trial::Full(why) => {
                self.troubles.note(format!(
                    "the broker takes no work, as JetStream's limits are met ({why}): raise them, or remove what else is stored"
                ));
                Ok(false)
            }
            Trial::Refused(why) => {
                self.troubles.note(format!(
                    "the stream of work took nothing ({why}) and is made anew: see that nats-server's disk has room"
                ));
                self.replace_stream(&self.work_config(), found).await?;
                self.uptake.clear();
                Ok(true)
            }
        }
    }

    /// Moves the anchor, which is a message like any other to the server, and which nobody takes.
    async fn try_stream(&self) -> Result<Trial, Error> {
        let trial = async {
            // What cannot be written cannot be removed either.
            let removed = self.purge_anchor().await.is_ok();
            match self.publish_anchor().await {
                Ok(_) => Ok(Trial::Taken),
                Err(error) => match error.kind() {
                    PublishErrorKind::StreamNotFound => Err(unavailable(error)),
                    // Another node's was taken just now.
                    PublishErrorKind::WrongLastSequence if removed => Ok(Trial::Taken),
                    _ if is_full(&error) => Ok(Trial::Full(error.to_string())),
                    _ => Ok(Trial::Refused(error.to_string())),
                },
            }
        };
        let asked_on = *self.link.borrow();
        match within(TRIAL_MAX, trial).await {
            Ok(trial) => Ok(trial),
            // Silence on a connection that was lost says nothing about the stream.
            Err(error) if *self.link.borrow() != asked_on => Err(error),
            Err(error @ Error::Unusable(_)) => Err(error),
            Err(Error::Unavailable(_)) => Ok(Trial::Refused("no acknowledgement".to_owned())),
        }
    }
}

/// Whether the server says that an account or the server itself may keep no more.
fn is_full(error: &async_nats::jetstream::context::PublishError) -> bool {
    let answer = error.source().and_then(|source| source.downcast_ref::<async_nats::jetstream::Error>());
    let full = [
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::MEMORY_RESOURCES_EXCEEDED,
    ];
    answer.is_some_and(|answer| full.contains(&answer.error_code()))
}
