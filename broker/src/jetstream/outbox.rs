//! Messages whose loss costs time only: sent in order, dropped when there are too many or nobody to send to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_nats::{Client, Subject};
use bytes::Bytes;
use futures::FutureExt as _;
use tokio::sync::mpsc;

/// Most messages that wait to be written.
const WAITING_MAX: usize = 8_192;
/// Most messages that are taken at once.
const BATCH_MAX: usize = 256;

/// Takes messages without waiting.
#[derive(Clone)]
pub(crate) struct Outbox {
    client: Client,
    letters: mpsc::Sender<Letter>,
    /// Letters that wait or are being written; while there are none, a message takes the short way.
    waiting: Arc<AtomicUsize>,
}

/// A message on its way out.
struct Letter {
    subject: Subject,
    body: Bytes,
}

impl Outbox {
    /// Starts the task that writes what could not be written at once; it ends with the last outbox.
    pub(crate) fn start(client: Client) -> Self {
        let (letters, queue) = mpsc::channel(WAITING_MAX);
        let waiting = Arc::new(AtomicUsize::new(0));
        tokio::spawn(run(client.clone(), queue, Arc::clone(&waiting)));
        Self { client, letters, waiting }
    }

    /// Sends a message, or loses it.
    pub(crate) fn send(&self, subject: String, body: Vec<u8>) {
        let (subject, body) = (Subject::from(subject), Bytes::from(body));
        if self.waiting.load(Ordering::Acquire) == 0 {
            // The connection takes it at once unless it has too much to write already.
            match self.client.publish(subject.clone(), body.clone()).now_or_never() {
                Some(Ok(())) => return,
                Some(Err(error)) => return tracing::debug!(target: super::LOG, %error, "a notice is lost"),
                None => {}
            }
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
        if self.letters.try_send(Letter { subject, body }).is_err() {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            tracing::debug!(target: super::LOG, "too much to send: a notice is dropped");
        }
    }
}

async fn run(client: Client, mut queue: mpsc::Receiver<Letter>, waiting: Arc<AtomicUsize>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
        for Letter { subject, body } in batch.drain(..) {
            if let Err(error) = client.publish(subject, body).await {
                tracing::debug!(target: super::LOG, %error, "a notice is lost");
            }
            waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
