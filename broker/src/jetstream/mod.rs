//! A broker on NATS JetStream, for many processes on many machines.
//!
//! Work waits in a stream until a worker has acknowledged it, one consumer per tag and one per worker; mail and news go
//! over plain subjects; cancellations are kept for some minutes. Whatever is lost on the way is handed out again by the
//! owners of the shards: see `losses`.

mod connection;
mod options;
mod subjects;
mod wire;

mod core;
mod losses;
mod outbox;

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
use outlast_core::{ActivityKey, InstanceId, InstanceState, ShardId, TagFilter, WorkerId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::control::{Cancelled, Canceller, Reader};
use self::core::{ANSWER_TIMEOUT, Core, unavailable, within};
use self::mail::MailRoom;
use self::news::NewsDesk;
pub use self::options::{Auth, ClientCertificate, JetStreamOptions, Tls};
use self::outbox::Outbox;
use self::puller::Puller;
use self::settle::Holdings;
use self::source::{Shelf, Source};
use self::subjects::{Lane, Subjects};
use crate::{Broker, Control, Dispatch, Error, Report, ReportReply, ShardMail, StatusWatch, WorkSource, WorkerProfile};

/// Where all log lines of the broker go.
const LOG: &str = "outlast::broker";
/// Largest input that travels with an item.
const PAYLOAD_BYTES_MAX: usize = 256 << 10;
/// How often workers that take every tag look for new ones.
const LEARN_EVERY: Duration = Duration::from_secs(5);
/// How long a new worker waits for the cancellations of the last minutes.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// Carries work, mail and news between processes. Lives inside a tokio runtime.
pub struct JetStreamBroker {
    core: Arc<Core>,
    mail: Arc<MailRoom>,
    news: Arc<NewsDesk>,
    canceller: Canceller,
    tasks: Vec<JoinHandle<()>>,
}

impl JetStreamBroker {
    /// Connects, creates what is missing on the server and checks what is there.
    pub async fn connect(options: JetStreamOptions) -> Result<Self, Error> {
        let subjects = Subjects::new(&options.namespace)?;
        let (client, link) = connection::connect(&options).await?;
        let (outbox, letters) = Outbox::new();
        let (canceller, keys) = Canceller::new();
        let core = Arc::new(Core::new(client.clone(), link, subjects, options, outbox));
        core.create_streams().await?;
        let tasks = vec![
            tokio::spawn(outbox::run(client, letters)),
            tokio::spawn(control::send(Arc::clone(&core), keys)),
            tokio::spawn(losses::run(Arc::clone(&core))),
        ];
        within(ANSWER_TIMEOUT, async {
            core.checked().await;
            Ok(())
        })
        .await?;
        let (mail, news) = (MailRoom::new(Arc::clone(&core)), NewsDesk::new(Arc::clone(&core)));
        Ok(Self { core, mail, news, canceller, tasks })
    }
}

impl Drop for JetStreamBroker {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[async_trait]
impl Broker for JetStreamBroker {
    async fn publish(&self, items: Vec<Dispatch>) -> Result<(), Error> {
        self.core.publish_work(&items).await
    }

    async fn cancel(&self, key: &ActivityKey) -> Result<(), Error> {
        self.canceller.cancel(key.clone())
    }

    async fn pull(
        &self,
        worker: WorkerProfile,
    ) -> Result<(Box<dyn WorkSource>, mpsc::UnboundedReceiver<Control>), Error> {
        let core = &self.core;
        let lanes = puller::lanes_of(&worker);
        let mut ack_wait = core.options.ack_wait;
        for lane in &lanes {
            ack_wait = ack_wait.min(core.create_lane(lane).await?);
        }
        let (control, listener) = mpsc::unbounded_channel();
        let (caught_up, catching_up) = oneshot::channel();
        let cancelled = Arc::new(Cancelled::default());
        let reader = Reader { core: Arc::clone(core), cancelled: Arc::clone(&cancelled), control };
        let (reading, read_no_more) = oneshot::channel();
        tokio::spawn(reader.run(caught_up, read_no_more));
        let shelf = Arc::new(Shelf::default());
        let holdings = Holdings::new(Arc::clone(core), ack_wait);
        let (learn, learned) = mpsc::unbounded_channel();
        let puller = Puller::new(Arc::clone(core), Arc::clone(&shelf), holdings, lanes, learned).await?;
        if worker.filter == TagFilter::Any {
            tokio::spawn(puller::learn(Arc::clone(core), learn, LEARN_EVERY));
        }
        // Late ones still reach it; it may have begun what they cancel.
        let _late = tokio::time::timeout(CATCH_UP_MAX, catching_up).await;
        let (pulling, pull_no_more) = oneshot::channel();
        tokio::spawn(puller.run(pull_no_more));
        Ok((Box::new(Source { shelf, cancelled, _open: [reading, pulling] }), listener))
    }

    async fn own(&self, shards: &[ShardId], mail: mpsc::UnboundedSender<ShardMail>) -> Result<(), Error> {
        self.mail.own(shards, &mail).await
    }

    async fn disown(&self, shards: &[ShardId], mail: &mpsc::UnboundedSender<ShardMail>) {
        self.mail.disown(shards, mail);
    }

    fn nudge(&self, shard: ShardId, instance: InstanceId) {
        self.mail.nudge(shard, instance);
    }

    async fn report(&self, shard: ShardId, report: Report) -> ReportReply {
        self.mail.report(shard, report).await
    }

    fn announce(&self, instance: &InstanceId, state: Option<&InstanceState>) {
        self.news.announce(instance, state);
    }

    fn watch(&self, instance: &InstanceId) -> StatusWatch {
        self.news.watch(instance)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn payload_bytes_max(&self) -> usize {
        PAYLOAD_BYTES_MAX
    }

    fn losses(&self) -> watch::Receiver<u64> {
        self.core.losses.subscribe()
    }

    async fn forget_worker(&self, worker: &WorkerId) {
        let lane = Lane::worker(worker);
        let forget = async {
            let stream =
                self.core.js.get_stream_no_info(self.core.subjects.work_stream()).await.map_err(unavailable)?;
            // It may be gone already.
            let _gone = stream.delete_consumer(&lane.consumer()).await;
            stream.purge().filter(self.core.subjects.lane(&lane)).await.map_err(unavailable)
        };
        if let Err(error) = within(ANSWER_TIMEOUT, forget).await {
            tracing::warn!(target: LOG, %worker, %error, "what was brought to a dead worker stays queued");
        }
    }
}
