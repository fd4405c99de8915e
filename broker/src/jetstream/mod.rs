//! A broker on NATS JetStream, for many processes on many machines.
//!
//! Work waits in a stream until a worker has acknowledged it, one consumer per tag and one per worker; mail and news go
//! and cancellations over plain subjects. Whatever is lost on the way is handed out again by the owners of the shards (see
//! `losses`) or asked for by workers.

mod connection;
mod credentials;
mod options;
mod refusal;
mod subjects;
mod tls;
mod wire;

mod consumers;
mod hub;
mod losses;
mod outbox;
mod refused_work;
mod streams;
mod sweep;
mod troubles;
mod upkeep;

mod control;
mod publish;
mod puller;
mod settle;
mod source;

mod mail;
mod news;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use outlast_core::{ActivityRef, InstanceId, InstanceState, MessageId, ShardId, StartSnapshot, TagFilter, WorkerId};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::connection::NAMES_BYTES_MAX;
use self::control::{Cancelled, Canceller, Reader};
use self::hub::{ANSWER_TIMEOUT, Hub, unavailable, within};
use self::mail::MailRoom;
use self::news::NewsDesk;
pub use self::options::{Auth, ClientCertificate, JetStreamOptions, Tls};
use self::puller::Puller;
use self::settle::Holdings;
use self::source::{Shelf, Source};
use self::subjects::{Lane, Subjects};
use self::upkeep::keep;
use crate::{
    Broker, Control, Dispatch, Error, Question, Report, ReportReply, ShardMessage, StatusWatch, Trouble, WorkSource,
    WorkerProfile,
};

/// Where all log lines of the broker go.
const LOG: &str = "outlast::broker";
/// Largest input that travels with an item, if the server takes it.
const PAYLOAD_BYTES_MAX: usize = 256 << 10;
/// How often workers that take every tag look for new ones.
const LEARN_EVERY: Duration = Duration::from_secs(5);

/// Carries work, mail and news between processes. Lives inside a tokio runtime, and longer than the sources that it opened.
pub struct JetStreamBroker {
    hub: Arc<Hub>,
    mail: Arc<MailRoom>,
    news: Arc<NewsDesk>,
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
        let hub = Arc::new(Hub::new(client, link, subjects, options));
        hub.create_stream(&hub.work_config()).await?;
        let (cancelled, seen) = (Arc::new(Mutex::new(cancelled)), Arc::new(Mutex::new(None)));
        let tasks = vec![
            spawn(&hub, "cancellations", move |hub| control::send(hub, Arc::clone(&cancelled))),
            spawn(&hub, "losses", move |hub| losses::run(hub, Arc::clone(&seen))),
            spawn(&hub, "sweep", sweep::run),
            spawn(&hub, "consumers", consumers::run),
        ];
        within(ANSWER_TIMEOUT, async {
            hub.checked().await;
            Ok(())
        })
        .await?;
        let (mail, news) = (MailRoom::new(Arc::clone(&hub)), NewsDesk::new(Arc::clone(&hub)));
        Ok(Self { hub, mail, news, canceller, tasks })
    }
}

/// Starts a task that needs little but the hub.
fn spawn<F>(hub: &Arc<Hub>, task: &'static str, start: impl Fn(Arc<Hub>) -> F + Send + 'static) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let kept = Arc::clone(hub);
    tokio::spawn(keep(Arc::clone(&hub.troubles), task, move || start(Arc::clone(&kept))))
}

impl Drop for JetStreamBroker {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[async_trait]
impl Broker for JetStreamBroker {
    async fn publish(&self, items: Vec<Dispatch>) -> Result<(), Error> {
        let items = self.hub.without_unclaimed(items).await?;
        self.hub.publish_work(&items).await
    }

    async fn cancel(&self, activity: &ActivityRef) -> Result<(), Error> {
        self.canceller.cancel(activity.clone())
    }

    async fn pull(
        &self,
        worker: WorkerProfile,
    ) -> Result<(Box<dyn WorkSource>, mpsc::UnboundedReceiver<Control>), Error> {
        let hub = &self.hub;
        let lanes = puller::lanes_of(&worker);
        let mut ack_wait = hub.options.ack_wait;
        for lane in &lanes {
            ack_wait = ack_wait.min(hub.create_lane(lane).await?);
        }
        let (control, listener) = mpsc::unbounded_channel();
        let cancelled = Arc::new(Cancelled::default());
        let reader = Reader { cancelled: Arc::clone(&cancelled), troubles: Arc::clone(&hub.troubles), control };
        // Before the first request for items: whatever is cancelled after it was delivered here is heard of.
        let letters = hub.client.subscribe(hub.subjects.cancel()).await.map_err(unavailable)?;
        let (reading, read_no_more) = oneshot::channel();
        tokio::spawn(reader.run(letters, read_no_more));
        let shelf = Arc::new(Shelf::default());
        let holdings = Holdings::new(Arc::clone(hub), ack_wait);
        let (learn, learned) = mpsc::unbounded_channel();
        let own = lanes.iter().find(|lane| matches!(lane, Lane::Worker(_))).cloned();
        let puller = Puller::new(Arc::clone(hub), Arc::clone(&shelf), Arc::clone(&holdings), lanes, learned).await?;
        if worker.filter == TagFilter::Any {
            spawn(hub, "new tags", move |hub| puller::learn(hub, learn.clone(), LEARN_EVERY));
        }
        let (pulling, pull_no_more) = oneshot::channel();
        let puller = tokio::spawn(puller.run(pull_no_more));
        let open = Some([reading, pulling]);
        let hub = Arc::clone(hub);
        Ok((Box::new(Source { hub, shelf, cancelled, holdings, own, puller, open, look_from: 0 }), listener))
    }

    async fn own(&self, shards: &[ShardId], mail: mpsc::UnboundedSender<ShardMessage>) -> Result<(), Error> {
        self.mail.own(shards, &mail).await
    }

    async fn disown(&self, shards: &[ShardId], mail: &mpsc::UnboundedSender<ShardMessage>) {
        self.mail.disown(shards, mail).await;
    }

    fn nudge(&self, shard: ShardId, instance: InstanceId) {
        self.mail.nudge(shard, instance);
    }

    fn begin(&self, shard: ShardId, beginning: StartSnapshot) {
        self.mail.begin(shard, beginning);
    }

    fn deleted(&self, shard: ShardId, instance: InstanceId) {
        self.mail.deleted(shard, instance);
    }

    async fn report(&self, shard: ShardId, report: Report) -> ReportReply {
        self.mail.report(shard, report).await
    }

    async fn ask(&self, shard: ShardId, questions: Vec<Question>) -> Vec<ReportReply> {
        self.mail.ask(shard, questions).await
    }

    fn publish_status(&self, instance: &InstanceId, state: Option<&InstanceState>) {
        self.news.publish_status(instance, state, None);
    }

    fn publish_status_of(&self, instance: &InstanceId, state: &InstanceState, begun_by: &MessageId) {
        self.news.publish_status(instance, Some(state), Some(begun_by));
    }

    fn watch(&self, instance: &InstanceId) -> StatusWatch {
        self.news.watch(instance)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn is_connected(&self) -> bool {
        self.hub.is_up()
    }

    fn payload_bytes_max(&self) -> usize {
        PAYLOAD_BYTES_MAX.min(self.hub.client.max_payload().saturating_sub(NAMES_BYTES_MAX))
    }

    fn losses(&self) -> watch::Receiver<u64> {
        self.hub.losses.subscribe()
    }

    fn troubles(&self) -> Vec<Trouble> {
        self.hub.troubles.list()
    }

    async fn forget_worker(&self, worker: &WorkerId) {
        let (hub, lane) = (&self.hub, Lane::worker(worker));
        hub.forget_lane(&lane);
        if !hub.is_up() {
            return;
        }
        let forget = async {
            let stream = hub.js.get_stream_no_info(hub.subjects.work_stream()).await.map_err(unavailable)?;
            // It may be gone already.
            let _gone = stream.delete_consumer(&lane.consumer()).await;
            stream.purge().filter(hub.subjects.lane(&lane)).await.map_err(unavailable)
        };
        if let Err(error) = hub.answer(forget).await {
            tracing::warn!(target: LOG, %worker, %error, "what was brought to a dead worker stays queued");
        }
    }
}
