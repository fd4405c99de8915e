//! Work on its way to the stream: sent many at a time, acknowledged one by one.

use std::time::Duration;

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Info;
use outlast_core::encode;

use super::hub::{Hub, unavailable};
use super::subjects::Lane;
use crate::{Dispatch, Error};

/// Longest time that a caller waits.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Items that are sent before the first acknowledgement is awaited.
const PIPELINE_MAX: usize = 1_024;
/// Most sequences between the anchor and the end of the stream.
const ANCHOR_SPAN_MAX: u64 = 10_000_000;
/// Pause between attempts.
const RETRY_DELAY: Duration = Duration::from_millis(100);

impl Hub {
    /// Returns when the stream has every item, or had it already. Sending again what may have arrived is harmless.
    pub(crate) async fn publish_work(&self, items: &[Dispatch]) -> Result<(), Error> {
        let mut last = Error::Unavailable("the server is away".to_owned());
        let publish = async {
            loop {
                self.up().await;
                match self.publish_all(items).await {
                    Ok(()) => return Ok(()),
                    Err(error @ Error::Unusable(_)) => return Err(error),
                    Err(error @ Error::Unavailable(_)) => last = error,
                }
                tokio::time::sleep(RETRY_DELAY).await;
            }
        };
        match tokio::time::timeout(PUBLISH_TIMEOUT, publish).await {
            Ok(published) => published,
            Err(_) => Err(last),
        }
    }

    async fn publish_all(&self, items: &[Dispatch]) -> Result<(), Error> {
        // What a worker holds goes to its own consumer, which it made itself.
        let lanes = items.iter().filter(|dispatch| dispatch.worker.is_none());
        let lanes = lanes.map(|dispatch| Lane::of(&dispatch.item, None)).collect();
        self.prepare(lanes).await?;
        for pipeline in items.chunks(PIPELINE_MAX) {
            let homeless = self.answer(self.publish_once(pipeline.iter().collect())).await?;
            if !homeless.is_empty() {
                self.losses.look_now();
                self.create_streams().await?;
                return Err(Error::Unavailable("the stream was gone".to_owned()));
            }
        }
        Ok(())
    }

    /// Keeps a message that nobody takes at the front of the stream, and moves it when it has fallen far behind.
    ///
    /// Without it, whenever all that was delivered is acknowledged, a consumer stands at the very front, and there the
    /// server (2.15, files) counts all subjects of its filter before each delivery: 300,000 waiting items came at 4,600/s,
    /// with it at 45,000/s.
    pub(crate) async fn anchor(&self, info: &Info) -> Result<(), Error> {
        if self.options.memory_storage {
            return Ok(());
        }
        self.answer(async {
            let subject = self.subjects.anchor();
            if info.state.last_sequence.saturating_sub(info.state.first_sequence) > ANCHOR_SPAN_MAX {
                let stream = self.js.get_stream_no_info(self.subjects.work_stream()).await.map_err(unavailable)?;
                stream.purge().filter(subject.clone()).await.map_err(unavailable)?;
            }
            let message = PublishMessage::build().expected_last_subject_sequence(0);
            match self.js.send_publish(subject, message).await.map_err(unavailable)?.await {
                Ok(acknowledgement) => self.note_acknowledged(acknowledgement.sequence),
                Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {}
                Err(error) => return Err(unavailable(error)),
            }
            Ok(())
        })
        .await
    }

    /// Gives back what found no stream.
    async fn publish_once<'a>(&self, items: Vec<&'a Dispatch>) -> Result<Vec<&'a Dispatch>, Error> {
        // Taken for all at once: those who wait for a permit hold none.
        let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
        let _permits = self.publishes.acquire_many(count).await;
        let mut sent = Vec::with_capacity(items.len());
        for dispatch in items {
            let lane = Lane::of(&dispatch.item, dispatch.worker.as_ref());
            let subject = self.subjects.item(&lane, &dispatch.item);
            // Refused when the subject has a message: the refusal has a number of its own, which the refusal by the
            // limit of messages per subject has not.
            let message =
                PublishMessage::build().payload(encode(&dispatch.item).into()).expected_last_subject_sequence(0);
            let acknowledgement = self.js.send_publish(subject, message).await;
            sent.push((dispatch, acknowledgement.map_err(|error| Error::Unavailable(error.to_string()))?));
        }
        let mut homeless = Vec::new();
        for (dispatch, acknowledgement) in sent {
            match acknowledgement.await {
                Ok(acknowledgement) => self.note_acknowledged(acknowledgement.sequence),
                Err(error) => match error.kind() {
                    PublishErrorKind::WrongLastSequence => {}
                    PublishErrorKind::StreamNotFound => homeless.push(dispatch),
                    _ => return Err(Error::Unavailable(error.to_string())),
                },
            }
        }
        Ok(homeless)
    }
}
