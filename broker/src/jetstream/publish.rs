//! Work on its way to the stream: sent many at a time, acknowledged one by one.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Info, LastRawMessageErrorKind};
use outlast_core::{ActivityItem, ActivityRef, Reason, encode};

use super::ack_subject::AGAIN;
use super::server::{Server, unavailable};
use super::subjects::WorkQueue;
use crate::{Dispatch, Error};

/// Longest time that a caller waits. It repeats the publish, and the items stay outstanding meanwhile.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Items that are sent before the first acknowledgement is awaited: the server is busy with them longer than a trip takes.
const PIPELINE_MAX: usize = 1_024;
/// Most sequences between the anchor and the end of the stream. The server keeps some bytes for each that was deleted in
/// between.
const ANCHOR_SPAN_MAX: u64 = 10_000_000;
/// Most bytes of the headers of an item.
const HEADERS_BYTES_MAX: usize = 512;
/// Looks for copies of one item: it may be in its tag's queue and in the queues of workers.
const COPIES_MAX: usize = 4;
/// Pause between attempts: a stream or a leader that is made anew is there within a few of them.
const RETRY_DELAY: Duration = Duration::from_millis(100);

impl Server {
    /// Returns when the stream has every item, or had it already. Sending again what may have arrived is harmless.
    pub(crate) async fn publish_work(&self, items: &[Dispatch]) -> Result<(), Error> {
        let mut last = Error::unavailable("the server does not take it");
        let mut offer = None;
        let publish = async {
            loop {
                self.up().await;
                let offered = *offer.insert(self.offer());
                match self.publish_all(items).await {
                    Ok(()) => return Ok(()),
                    Err(error @ Error::Unusable(_)) => {
                        self.troubles.note(error.to_string());
                        return Err(error);
                    }
                    Err(error @ Error::Unavailable(_)) => last = error,
                }
                self.not_taken(offered);
                tokio::time::sleep(RETRY_DELAY).await;
            }
        };
        match tokio::time::timeout(PUBLISH_TIMEOUT, publish).await {
            Ok(published) => published,
            Err(_) => {
                offer.into_iter().for_each(|offer| self.not_taken(offer));
                Err(last)
            }
        }
    }

    async fn publish_all(&self, items: &[Dispatch]) -> Result<(), Error> {
        // What a worker holds goes to its own consumer, which it made itself.
        let queues = items.iter().filter(|dispatch| dispatch.worker.is_none());
        let queues = queues.map(|dispatch| WorkQueue::of(&dispatch.item, None)).collect();
        self.prepare(queues).await?;
        for pipeline in items.chunks(PIPELINE_MAX) {
            let homeless = self.answer(self.publish_once(pipeline.iter().collect())).await?;
            if !homeless.is_empty() {
                self.losses.look_now();
                self.create_stream(&self.work_config()).await?;
                return Err(Error::unavailable("the stream was gone"));
            }
        }
        Ok(())
    }

    /// Where in the stream the last message of a subject is.
    async fn sequence_of(&self, subject: &str) -> Result<Option<u64>, Error> {
        let name = self.subjects.work_stream();
        let look = async {
            let stream = self.js.get_stream_no_info(name).await.map_err(unavailable)?;
            match stream.get_last_raw_message_by_subject(subject).await {
                Ok(message) => Ok(Some(message.sequence)),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
                // Without a stream there is none either.
                Err(error) => match error.kind() {
                    LastRawMessageErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                        Ok(None)
                    }
                    _ => Err(unavailable(error)),
                },
            }
        };
        self.answer(look).await
    }

    /// Takes an item out of the stream, wherever in it; whoever runs it does not mind.
    pub(crate) async fn withdraw(&self, activity: &ActivityRef) -> Result<(), Error> {
        let subject = self.subjects.item_anywhere(activity);
        let incarnation = self.losses.incarnation();
        for _ in 0..COPIES_MAX {
            let Some(sequence) = self.sequence_of(&subject).await? else { return Ok(()) };
            // In a stream that was made anew since, the number may be another item's.
            if self.losses.incarnation() != incarnation {
                return Err(Error::unavailable("the stream was made anew"));
            }
            let delete = async {
                let stream = self.js.get_stream_no_info(self.subjects.work_stream()).await.map_err(unavailable)?;
                // It may be gone since; the next look tells.
                Ok(stream.delete_message(sequence).await.is_ok())
            };
            self.answer(delete).await?;
        }
        Err(Error::unavailable("the item is in the stream still"))
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
            if info.state.last_sequence.saturating_sub(info.state.first_sequence) > ANCHOR_SPAN_MAX {
                self.purge_anchor().await?;
            }
            match self.publish_anchor().await {
                Err(error) if error.kind() != PublishErrorKind::WrongLastSequence => Err(unavailable(error)),
                Ok(()) | Err(_) => Ok(()),
            }
        })
        .await
    }

    pub(crate) async fn purge_anchor(&self) -> Result<(), Error> {
        let stream = self.js.get_stream_no_info(self.subjects.work_stream()).await.map_err(unavailable)?;
        stream.purge().filter(self.subjects.anchor()).await.map(drop).map_err(unavailable)
    }

    /// Refused with `WrongLastSequence` when there is one.
    pub(crate) async fn publish_anchor(&self) -> Result<(), PublishError> {
        let message = PublishMessage::build().payload(encode(&()).into()).expected_last_subject_sequence(0);
        let acknowledgement = self.js.send_publish(self.subjects.anchor(), message).await?.await?;
        self.note_acknowledged(acknowledgement.sequence);
        Ok(())
    }

    /// An item as the server takes it: without its input if it must be, as that stays in the history.
    fn body(&self, dispatch: &Dispatch) -> Option<Vec<u8>> {
        let bytes_max = self.client.max_payload().saturating_sub(HEADERS_BYTES_MAX);
        let body = encode(&dispatch.item);
        if body.len() <= bytes_max {
            return Some(body);
        }
        let light = ActivityItem { input: String::new(), input_stored: true, ..dispatch.item.clone() };
        let body = Some(encode(&light)).filter(|body| body.len() <= bytes_max);
        if body.is_none() {
            self.troubles.note(format!(
                "an activity has names that are larger than the messages of nats-server ({bytes_max} bytes): raise its max_payload"
            ));
        }
        body
    }

    /// Gives back what found no stream.
    async fn publish_once<'a>(&self, items: Vec<&'a Dispatch>) -> Result<Vec<&'a Dispatch>, Error> {
        // Taken for all at once: those who wait for a permit hold none.
        let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
        let _permits = self.publishes.acquire_many(count).await;
        let mut sent = Vec::with_capacity(items.len());
        for dispatch in items {
            let queue = WorkQueue::of(&dispatch.item, dispatch.worker.as_ref());
            let subject = self.subjects.item(&queue, &dispatch.item);
            let Some(body) = self.body(dispatch) else { continue };
            // Refused when the subject has a message: the refusal has a number of its own, which the refusal by the
            // limit of messages per subject has not.
            let message = PublishMessage::build().payload(body.into()).expected_last_subject_sequence(0);
            let message = if dispatch.again { message.header(AGAIN, "1") } else { message };
            let acknowledgement = self.js.send_publish(subject, message).await;
            sent.push((dispatch, acknowledgement.map_err(|error| Error::unavailable(Reason::of(error)))?));
        }
        let mut homeless = Vec::new();
        for (dispatch, acknowledgement) in sent {
            match acknowledgement.await {
                Ok(acknowledgement) => self.note_acknowledged(acknowledgement.sequence),
                Err(error) => match error.kind() {
                    PublishErrorKind::WrongLastSequence => {}
                    PublishErrorKind::StreamNotFound => homeless.push(dispatch),
                    _ => return Err(Error::unavailable(Reason::of(error))),
                },
            }
        }
        Ok(homeless)
    }
}
