//! Messages whose loss costs time only: sent in order by one task, dropped when there are too many or nobody to send to.

use async_nats::Client;
use tokio::sync::mpsc;

/// Most messages that wait to be written.
const WAITING_MAX: usize = 8_192;
/// Most messages that are taken at once.
const BATCH_MAX: usize = 256;

/// Takes messages without waiting.
#[derive(Clone)]
pub(crate) struct Outbox {
    letters: mpsc::Sender<Letter>,
}

/// A message on its way out.
pub(crate) struct Letter {
    subject: String,
    body: Vec<u8>,
}

impl Outbox {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Letter>) {
        let (letters, waiting) = mpsc::channel(WAITING_MAX);
        (Self { letters }, waiting)
    }

    /// Sends a message, or loses it.
    pub(crate) fn send(&self, subject: String, body: Vec<u8>) {
        if self.letters.try_send(Letter { subject, body }).is_err() {
            tracing::debug!(target: super::LOG, "too much to send: a notice is dropped");
        }
    }
}

/// Writes what the outbox takes.
pub(crate) async fn run(client: Client, mut waiting: mpsc::Receiver<Letter>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while waiting.recv_many(&mut batch, BATCH_MAX).await > 0 {
        for Letter { subject, body } in batch.drain(..) {
            if let Err(error) = client.publish(subject, body.into()).await {
                tracing::debug!(target: super::LOG, %error, "a notice is lost");
            }
        }
    }
}
