//! A broker on NATS JetStream, for many processes on many machines.
//!
//! Work waits in a stream until a worker has acknowledged it, one consumer per tag and one per worker; shard messages, status
//! updates and cancellations go over plain subjects. Whatever is lost on the way is handed out again by the owners of the shards (see
//! `losses`) or asked for by workers.

mod connect_failure;
mod connection;
mod credentials;
mod options;
mod subjects;
mod tls;
mod wire;

mod consumers;
mod loss_alarm;
mod outbox;
mod restarts;
mod server;
mod stream_trial;
mod stream_watch;
mod streams;
mod troubles;
mod unused_consumers;
mod uptake;

mod ack_subject;
mod cancellations;
mod prefetch;
mod publish;
mod puller;
mod unacknowledged;
mod worker_source;

mod shard_messages;
mod status_updates;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use outlast_core::{InstanceId, InstanceState, MessageId, ShardId, TagFilter};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;

use self::cancellations::{Cancelled, Canceller, Reader};
use self::connection::NAMES_BYTES_MAX;
pub use self::options::{Auth, ClientCertificate, JetStreamOptions, Tls};
use self::prefetch::PrefetchBuffer;
use self::puller::Puller;
use self::restarts::keep;
use self::server::{ANSWER_TIMEOUT, Server, unavailable, within};
use self::shard_messages::ShardMessages;
use self::status_updates::StatusUpdates;
use self::subjects::{Subjects, WorkQueue};
use self::unacknowledged::Unacknowledged;
use self::worker_source::Source;
use crate::{
    Broker, BrokerState, Control, Dispatch, Error, ReportReply, ShardMessage, ShardNotice, ShardRequest, StatusWatch,
    Withdrawal, WorkSource, WorkerProfile,
};

/// Where all log lines of the broker go.
const LOG: &str = "outlast::broker";
/// Largest input that travels with an item, if the server takes it; the worker reads a larger one from the store, which costs
/// less than carrying it through the stream.
const PAYLOAD_BYTES_MAX: usize = 256 << 10;
/// How often workers that take every tag look for new ones: a new tag waits no longer for its first worker.
const LEARN_EVERY: Duration = Duration::from_secs(5);

/// Carries work, shard messages and status updates between processes. Lives inside a tokio runtime, and longer than the sources that it opened.
pub struct JetStreamBroker {
    server: Arc<Server>,
    shard_messages: Arc<ShardMessages>,
    status_updates: Arc<StatusUpdates>,
    canceller: Canceller,
    tasks: Vec<JoinHandle<()>>,
}

impl JetStreamBroker {
    /// Connects, creates what is missing on the server and checks what is there.
    pub async fn connect(options: JetStreamOptions) -> Result<Self, Error> {
        options.check()?;
        let subjects = Subjects::new(&options.namespace)?;
        let (client, link) = connection::connect(&options).await?;
        let (canceller, cancelled) = Canceller::new();
        let server = Arc::new(Server::new(client, link, subjects, options));
        server.create_stream(&server.work_config()).await?;
        let (cancelled, seen) = (Arc::new(Mutex::new(cancelled)), Arc::new(Mutex::new(None)));
        let tasks = vec![
            spawn(&server, "cancellations", move |server| cancellations::send(server, Arc::clone(&cancelled))),
            spawn(&server, "watch of the stream", move |server| stream_watch::run(server, Arc::clone(&seen))),
            spawn(&server, "unused consumers", unused_consumers::run),
            spawn(&server, "consumers", consumers::run),
        ];
        within(ANSWER_TIMEOUT, async {
            server.checked().await;
            Ok(())
        })
        .await?;
        let (shard_messages, status_updates) =
            (ShardMessages::new(Arc::clone(&server)), StatusUpdates::new(Arc::clone(&server)));
        Ok(Self { server, shard_messages, status_updates, canceller, tasks })
    }
}

/// Starts a task that needs little but the server.
fn spawn<F>(
    server: &Arc<Server>,
    task: &'static str,
    start: impl Fn(Arc<Server>) -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let kept = Arc::clone(server);
    tokio::spawn(keep(Arc::clone(&server.troubles), task, move || start(Arc::clone(&kept))))
}

impl Drop for JetStreamBroker {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[async_trait]
impl Broker for JetStreamBroker {
    async fn publish(&self, items: Vec<Dispatch>) -> Result<(), Error> {
        self.server.publish_work(&items).await
    }

    async fn withdraw(&self, what: Withdrawal) -> Result<(), Error> {
        match what {
            Withdrawal::Activity(activity) => self.canceller.cancel(activity),
            Withdrawal::Worker(worker) => self.server.delete_worker_queue(&worker).await,
        }
    }

    async fn pull(
        &self,
        worker: WorkerProfile,
    ) -> Result<(Box<dyn WorkSource>, mpsc::UnboundedReceiver<Control>), Error> {
        let server = &self.server;
        let queues = puller::queues_of(&worker);
        let mut ack_wait = server.options.ack_wait;
        for queue in &queues {
            ack_wait = ack_wait.min(server.create_queue(queue).await?);
        }
        let (control, listener) = mpsc::unbounded_channel();
        let cancelled = Arc::new(Cancelled::default());
        let reader = Reader { cancelled: Arc::clone(&cancelled), troubles: Arc::clone(&server.troubles), control };
        // Before the first request for items: whatever is cancelled after it was delivered here is heard of.
        let messages = server.client.subscribe(server.subjects.cancel()).await.map_err(unavailable)?;
        let (reading, read_no_more) = oneshot::channel();
        tokio::spawn(reader.run(messages, read_no_more));
        let buffer = Arc::new(PrefetchBuffer::default());
        let unacknowledged = Unacknowledged::new(Arc::clone(server), ack_wait);
        let (learn, learned) = mpsc::unbounded_channel();
        let own = queues.iter().find(|queue| matches!(queue, WorkQueue::Worker(_))).cloned();
        let puller =
            Puller::new(Arc::clone(server), Arc::clone(&buffer), Arc::clone(&unacknowledged), queues, learned).await?;
        if worker.filter == TagFilter::Any {
            spawn(server, "new tags", move |server| puller::learn(server, learn.clone(), LEARN_EVERY));
        }
        let (pulling, pull_no_more) = oneshot::channel();
        let puller = tokio::spawn(puller.run(pull_no_more));
        let open = Some([reading, pulling]);
        let server = Arc::clone(server);
        Ok((Box::new(Source { server, buffer, cancelled, unacknowledged, own, puller, open, look_from: 0 }), listener))
    }

    async fn own(&self, shards: &[ShardId], receiver: mpsc::UnboundedSender<ShardMessage>) -> Result<(), Error> {
        self.shard_messages.own(shards, &receiver).await
    }

    async fn disown(&self, shards: &[ShardId], receiver: &mpsc::UnboundedSender<ShardMessage>) {
        self.shard_messages.disown(shards, receiver).await;
    }

    fn notify(&self, shard: ShardId, notice: ShardNotice) {
        self.shard_messages.notify(shard, notice);
    }

    async fn request(&self, shard: ShardId, request: ShardRequest) -> Vec<ReportReply> {
        match request {
            ShardRequest::Report(report) => self.shard_messages.report(shard, *report).await.into_iter().collect(),
            ShardRequest::Wanted(questions) => self.shard_messages.ask(shard, questions).await,
        }
    }

    fn publish_status(&self, instance: &InstanceId, state: Option<&InstanceState>, begun_by: Option<&MessageId>) {
        self.status_updates.publish_status(instance, state, begun_by);
    }

    fn watch(&self, instance: &InstanceId) -> StatusWatch {
        self.status_updates.watch(instance)
    }

    fn state(&self) -> BrokerState {
        let server = &self.server;
        BrokerState {
            is_shared: true,
            is_connected: server.is_up(),
            payload_bytes_max: PAYLOAD_BYTES_MAX.min(server.client.max_payload().saturating_sub(NAMES_BYTES_MAX)),
            losses: server.losses.subscribe(),
            troubles: server.troubles.list(),
        }
    }
}
