//! Messages whose loss costs time only: sent in order, dropped when there are too many or nobody to send to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_nats::{Client, Subject};
use bytes::Bytes;
use futures::FutureExt as _;
use tokio::sync::{Mutex, mpsc};

use super::restarts::keep;
use super::troubles::Troubles;

/// Most messages that wait to be written; further ones are dropped. All of them can get lost anyway, and the store has the facts.
const WAITING_MAX: usize = 8_192;
/// Most messages that are taken at once: one write to the socket.
const BATCH_MAX: usize = 256;

/// Takes messages without waiting.
#[derive(Clone)]
pub(crate) struct Outbox {
    client: Client,
    messages: mpsc::Sender<Outgoing>,
    /// Messages that wait or are being written; while there are none, a message takes the short way.
    waiting: Arc<AtomicUsize>,
}

/// A message on its way out.
struct Outgoing {
    subject: Subject,
    body: Bytes,
}

/// What outlives a panic of the task.
struct Queue {
    messages: mpsc::Receiver<Outgoing>,
    /// Taken and not written yet, the first one last.
    batch: Vec<Outgoing>,
}

impl Outbox {
    /// Starts the task that writes what could not be written at once; it ends with the last outbox.
    pub(crate) fn start(client: Client, troubles: Arc<Troubles>) -> Self {
        let (messages, queue) = mpsc::channel(WAITING_MAX);
        let waiting = Arc::new(AtomicUsize::new(0));
        let queue = Arc::new(Mutex::new(Queue { messages: queue, batch: Vec::with_capacity(BATCH_MAX) }));
        let (sending, counted) = (client.clone(), Arc::clone(&waiting));
        tokio::spawn(keep(troubles, "outbox", move || run(sending.clone(), Arc::clone(&queue), Arc::clone(&counted))));
        Self { client, messages, waiting }
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
        if self.messages.try_send(Outgoing { subject, body }).is_err() {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            tracing::debug!(target: super::LOG, "too much to send: a notice is dropped");
        }
    }
}

async fn run(client: Client, queue: Arc<Mutex<Queue>>, waiting: Arc<AtomicUsize>) {
    // Only one run at a time asks for it.
    let mut queue = queue.lock().await;
    let Queue { messages, batch } = &mut *queue;
    loop {
        while let Some(Outgoing { subject, body }) = batch.pop() {
            // A message that is lost to a panic does not wait any more either.
            let _counted = Counted(&waiting);
            if let Err(error) = client.publish(subject, body).await {
                tracing::debug!(target: super::LOG, %error, "a notice is lost");
            }
        }
        if messages.recv_many(batch, BATCH_MAX).await == 0 {
            return;
        }
        batch.reverse();
    }
}

/// A message that is written or lost.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
