//! Cancellations: kept by the server for a while, so that a worker that could not be reached learns of them later.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::message::PublishMessage;
use futures::StreamExt as _;
use outlast_core::{ActivityKey, decode, encode};
use tokio::sync::{mpsc, oneshot};

use super::hub::{Hub, unavailable};
use super::wire::CancelBody;
use crate::{Control, Error};

/// Most cancellations that a worker remembers.
const REMEMBERED_MAX: usize = 65_536;
/// Pause before the stream is read again after a failure.
const PAUSE: Duration = Duration::from_millis(200);
/// Most cancellations that are sent at once.
const BATCH_MAX: usize = 256;
/// Most cancellations that wait to be sent.
const WAITING_MAX: usize = 65_536;

/// What was cancelled lately, and when, by the server's clock.
#[derive(Default)]
pub(crate) struct Cancelled {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    at: HashMap<ActivityKey, u64>,
    order: VecDeque<ActivityKey>,
}

impl Cancelled {
    /// Whether a cancellation of this activity came after its item was `published`. One that came before was meant for
    /// an earlier life of the same id.
    pub(crate) fn covers(&self, key: &ActivityKey, published: u64) -> bool {
        self.lock().at.get(key).is_some_and(|at| *at >= published)
    }

    fn add(&self, key: ActivityKey, at: u64) {
        let mut known = self.lock();
        if known.at.insert(key.clone(), at).is_none() {
            known.order.push_back(key);
        }
        if known.order.len() > REMEMBERED_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.at.remove(&oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes cancellations without waiting and sends them until the server has them.
#[derive(Clone)]
pub(crate) struct Canceller {
    keys: mpsc::Sender<ActivityKey>,
}

impl Canceller {
    pub(crate) fn new() -> (Self, mpsc::Receiver<ActivityKey>) {
        let (keys, waiting) = mpsc::channel(WAITING_MAX);
        (Self { keys }, waiting)
    }

    pub(crate) fn cancel(&self, key: ActivityKey) -> Result<(), Error> {
        self.keys.try_send(key).map_err(|_| Error::Unavailable("too many cancellations wait".to_owned()))
    }
}

/// Sends cancellations until it is aborted.
pub(crate) async fn send(hub: Arc<Hub>, mut waiting: mpsc::Receiver<ActivityKey>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while waiting.recv_many(&mut batch, BATCH_MAX).await > 0 {
        while !batch.is_empty() {
            batch = send_once(&hub, std::mem::take(&mut batch)).await;
            if !batch.is_empty() {
                tokio::time::sleep(PAUSE).await;
                hub.up().await;
                if let Err(error) = hub.create_streams().await {
                    tracing::debug!(target: super::LOG, %error, "cancellations wait for the server");
                }
            }
        }
    }
}

/// Gives back what the server did not confirm.
async fn send_once(hub: &Hub, keys: Vec<ActivityKey>) -> Vec<ActivityKey> {
    let (mut sent, mut left) = (Vec::with_capacity(keys.len()), Vec::new());
    for key in keys {
        let body = encode(&CancelBody { key: key.clone() });
        let message = PublishMessage::build().payload(body.into());
        match hub.js.send_publish(hub.subjects.cancel(), message).await {
            Ok(confirmed) => sent.push((key, confirmed)),
            Err(_) => left.push(key),
        }
    }
    for (key, confirmed) in sent {
        if confirmed.await.is_err() {
            left.push(key);
        }
    }
    left
}

/// Reads cancellations for one worker.
pub(crate) struct Reader {
    pub(crate) hub: Arc<Hub>,
    pub(crate) cancelled: Arc<Cancelled>,
    pub(crate) control: mpsc::UnboundedSender<Control>,
}

/// How far a reader has come.
#[derive(Default)]
struct Position {
    /// When the stream was made.
    stream: Option<String>,
    sequence: u64,
}

impl Reader {
    /// Reads until the worker neither listens nor pulls. Says so on `caught_up` when all that the server keeps was read
    /// once.
    pub(crate) async fn run(self, caught_up: oneshot::Sender<()>, pulls_no_more: oneshot::Receiver<()>) {
        let listener = self.control.clone();
        let mut position = Position::default();
        let mut caught_up = Some(caught_up);
        let read = async {
            loop {
                if let Err(error) = self.read(&mut position, &mut caught_up).await {
                    tracing::debug!(target: super::LOG, %error, "cancellations are read anew");
                }
                tokio::time::sleep(PAUSE).await;
                self.hub.up().await;
            }
        };
        tokio::select! {
            _ = futures::future::join(listener.closed(), pulls_no_more) => {}
            () = read => {}
        }
    }

    async fn read(&self, position: &mut Position, caught_up: &mut Option<oneshot::Sender<()>>) -> Result<(), Error> {
        let name = self.hub.subjects.control_stream();
        let find = async { Ok(self.hub.js.get_stream(name).await) };
        let stream = match self.hub.answer(find).await? {
            Ok(stream) => stream,
            Err(error) => {
                self.hub.create_streams().await?;
                return Err(unavailable(error));
            }
        };
        let created = format!("{:?}", stream.cached_info().created);
        let state = &stream.cached_info().state;
        if position.stream.as_ref() != Some(&created) || state.last_sequence < position.sequence {
            *position = Position { stream: Some(created), sequence: 0 };
        }
        let goal = state.last_sequence;
        let config = pull::OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: position.sequence + 1 },
            ..pull::OrderedConfig::default()
        };
        let open = async { Ok(stream.create_consumer(config).await) };
        let consumer = self.hub.answer(open).await?.map_err(unavailable)?;
        let mut messages = consumer.messages().await.map_err(unavailable)?;
        let mut link = self.hub.link.clone();
        let connects = link.borrow_and_update().connects;
        let mut life = self.hub.control_life.subscribe();
        loop {
            if position.sequence >= goal || state.messages == 0 {
                caught_up.take().map(|caught_up| caught_up.send(()));
            }
            let message = tokio::select! {
                message = messages.next() => message,
                _ = link.wait_for(|link| link.up && link.connects != connects) => return Ok(()),
                // By itself the library would read on where it was in the stream that is gone.
                _ = life.changed() => return Ok(()),
            };
            let message =
                message.ok_or_else(|| Error::Unavailable("the reader ended".to_owned()))?.map_err(unavailable)?;
            let info = message.info().map_err(|error| Error::Unavailable(error.to_string()))?;
            position.sequence = info.stream_sequence;
            let at = u64::try_from(info.published.unix_timestamp_nanos()).unwrap_or(0);
            self.take(&message.payload, at);
        }
    }

    fn take(&self, body: &[u8], at: u64) {
        // Of a newer version: for newer workers.
        let Ok(CancelBody { key }) = decode(body) else { return };
        self.cancelled.add(key.clone(), at);
        // A worker that is gone runs nothing any more.
        let _gone = self.control.send(Control::Cancel(key));
    }
}
