//! Cancellations: every worker that is reached is told at once, and the item is taken out of the stream. Nothing is kept for
//! workers that are not reached: they ask the owners of what they run.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Subscriber;
use futures::StreamExt as _;
use outlast_core::{ActivityRef, decode, encode};
use tokio::sync::{mpsc, oneshot};

use super::restarts::note_panic;
use super::server::Server;
use super::troubles::Troubles;
use super::wire::CancelBody;
use crate::{Control, Error};

/// Most cancellations that a worker remembers: far more than items can be on their way to it, at some hundred bytes each.
const REMEMBERED_MAX: usize = 65_536;
/// Pause before items are looked for again after a failure: the server is most often back within a few of them.
const PAUSE: Duration = Duration::from_millis(200);
/// How often an item is looked for on a connection that stands: ten seconds, after which workers ask about it anyway.
const TRIES_MAX: usize = 50;
/// Most cancellations that are sent at once: a message of some kilobytes, below any limit of a server.
const BATCH_MAX: usize = 256;
/// Items that are looked for in the stream at once.
const LOOKS_MAX: usize = 64;
/// Most cancellations that wait to be sent. Beyond it callers are refused, and workers find out by asking.
const WAITING_MAX: usize = 65_536;

/// What was cancelled lately, so that what this worker has fetched already is not begun.
#[derive(Default)]
pub(crate) struct Cancelled {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    activities: HashSet<ActivityRef>,
    order: VecDeque<ActivityRef>,
}

impl Cancelled {
    pub(crate) fn has(&self, activity: &ActivityRef) -> bool {
        let known = self.lock();
        !known.activities.is_empty() && known.activities.contains(activity)
    }

    fn add(&self, activity: ActivityRef) {
        let mut known = self.lock();
        if known.activities.insert(activity.clone()) {
            known.order.push_back(activity);
        }
        if known.order.len() > REMEMBERED_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.activities.remove(&oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes cancellations without waiting; they are carried out as soon as the server is there.
#[derive(Clone)]
pub(crate) struct Canceller {
    activities: mpsc::Sender<ActivityRef>,
}

impl Canceller {
    pub(crate) fn new() -> (Self, mpsc::Receiver<ActivityRef>) {
        let (activities, waiting) = mpsc::channel(WAITING_MAX);
        (Self { activities }, waiting)
    }

    pub(crate) fn cancel(&self, activity: ActivityRef) -> Result<(), Error> {
        self.activities.try_send(activity).map_err(|_| Error::unavailable("too many cancellations wait"))
    }
}

/// Carries cancellations out until it is aborted.
pub(crate) async fn send(server: Arc<Server>, waiting: Arc<tokio::sync::Mutex<mpsc::Receiver<ActivityRef>>>) {
    // Only one run at a time takes the lock. After a panic, workers ask about what was being sent.
    let mut waiting = waiting.lock().await;
    let (told, items) = mpsc::channel(WAITING_MAX);
    let tell = async {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while waiting.recv_many(&mut batch, BATCH_MAX).await > 0 {
            server.up().await;
            for activity in batch.drain(..) {
                let body = CancelBody { key: activity.key.clone(), token: Some(activity.token) };
                if let Err(error) = server.client.publish(server.subjects.cancel(), encode(&body).into()).await {
                    tracing::debug!(target: super::LOG, %error, "a cancellation is lost: its worker will ask");
                }
                // When too many wait, whoever is given the item asks before it begins.
                let _left_there = told.try_send(activity);
            }
        }
    };
    tokio::join!(tell, withdraw_all(&server, items));
}

/// Takes items out of the stream after their workers were told; telling never waits for this. An item that stays is not begun,
/// because whoever is given it asks first.
async fn withdraw_all(server: &Server, mut items: mpsc::Receiver<ActivityRef>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while items.recv_many(&mut batch, BATCH_MAX).await > 0 {
        for _ in 0..TRIES_MAX {
            if batch.is_empty() {
                break;
            }
            server.checked().await;
            let looks = batch.drain(..).map(async |activity| match server.withdraw(&activity).await {
                Ok(()) => None,
                Err(error) => {
                    tracing::debug!(target: super::LOG, %error, "a cancelled item stays in the stream for now");
                    Some(activity)
                }
            });
            let left: Vec<_> = futures::stream::iter(looks).buffer_unordered(LOOKS_MAX).collect().await;
            batch = left.into_iter().flatten().collect();
            if !batch.is_empty() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        batch.clear();
    }
}

/// Reads cancellations for one worker.
pub(crate) struct Reader {
    pub(crate) cancelled: Arc<Cancelled>,
    pub(crate) troubles: Arc<Troubles>,
    pub(crate) control: mpsc::UnboundedSender<Control>,
}

impl Reader {
    /// Reads until the worker neither listens nor pulls.
    pub(crate) async fn run(self, mut messages: Subscriber, pulls_no_more: oneshot::Receiver<()>) {
        let listener = self.control.clone();
        let read = async {
            // The library subscribes again on each new connection; what was said meanwhile is asked for.
            while let Some(message) = messages.next().await {
                // Its worker asks about a cancellation that cannot be handled; the others are heard.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take(&message.payload))) {
                    note_panic(&self.troubles, "hearing of cancellations", panic);
                }
            }
        };
        tokio::select! {
            _ = futures::future::join(listener.closed(), pulls_no_more) => {}
            () = read => {}
        }
    }

    fn take(&self, body: &[u8]) {
        // Of a newer version: for newer workers.
        let Ok(CancelBody { key, token }) = decode(body) else { return };
        let control = match token {
            Some(token) => {
                let activity = ActivityRef { key, token };
                self.cancelled.add(activity.clone());
                Control::Cancel(activity)
            }
            None => Control::Check(key),
        };
        // A worker that is gone runs nothing any more.
        let _gone = self.control.send(control);
    }
}
