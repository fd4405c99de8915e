//! A broker that many nodes share, each by a handle of its own, and that loses, doubles, delays and reorders what it carries, is
//! wiped, and is rolled back to an older state of itself. It keeps the guarantees of the seam while it does none of that.
//!
//! Time is tokio's, so a paused runtime makes it virtual. Nothing here depends on anything but the seed and the order of calls.

mod faults;
mod stream;
mod worker_source;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use outlast_broker::in_process::InProcessBroker;
use outlast_broker::{
    Broker, BrokerState, Control, Dispatch, Error, ReportReply, ShardMessage, ShardNotice, ShardRequest, StatusWatch,
    Withdrawal, WorkSource, WorkerProfile,
};
use outlast_core::{InstanceId, InstanceState, MessageId, ShardId};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::sleep;

pub use faults::{BrokerFaults, BrokerHits};
use faults::{Fate, Injector};
use stream::Stream;
use worker_source::Source;

use crate::lock::locked;

/// How long a request without an answer is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// A loss of the whole stream is noticed within this time.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);

/// What all handles share.
pub struct SimulatedBrokerServer {
    payload_bytes_max: usize,
    injector: Mutex<Injector>,
    stream: Mutex<Stream>,
    /// The stream is another one.
    replaced: Notify,
    /// Who is told that work may be lost. One for each handle: those who wait for the same one are woken in an order that no seed
    /// decides.
    losses: Mutex<Vec<watch::Sender<u64>>>,
    /// Those who take messages for a shard, the latest last. One that was told late that it has the shard does not displace its
    /// successor for ever: when it leaves, the successor is the latest again.
    owners: Mutex<BTreeMap<ShardId, Vec<Receiver>>>,
    /// Status updates.
    updates: InProcessBroker,
}

/// Who takes messages for a shard.
struct Receiver {
    link: Arc<Link>,
    messages: mpsc::UnboundedSender<ShardMessage>,
}

/// One process's way to the broker.
pub struct SimulatedBroker {
    server: Arc<SimulatedBrokerServer>,
    link: Arc<Link>,
    losses: watch::Receiver<u64>,
}

/// Whether a process reaches the broker.
#[derive(Default)]
struct Link(AtomicU8);

const OPEN: u8 = 0;
const INTERRUPTED: u8 = 1;
const CUT: u8 = 2;

impl Link {
    fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed) == OPEN
    }

    fn check(&self) -> Result<(), Error> {
        if self.is_open() { Ok(()) } else { Err(Error::unavailable("this handle is cut off")) }
    }

    /// What was cut for ever stays so.
    fn set(&self, state: u8) {
        self.0.fetch_max(state, Ordering::Relaxed);
        if state == OPEN {
            let _cut = self.0.compare_exchange(INTERRUPTED, OPEN, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

impl SimulatedBrokerServer {
    /// An empty broker.
    pub fn new(seed: u64, payload_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            payload_bytes_max,
            injector: Mutex::new(Injector::new(seed)),
            stream: Mutex::default(),
            replaced: Notify::new(),
            losses: Mutex::default(),
            owners: Mutex::default(),
            updates: InProcessBroker::new(),
        })
    }

    /// A new handle.
    pub fn connect(self: &Arc<Self>) -> SimulatedBroker {
        let (told, losses) = watch::channel(0);
        locked(&self.losses).push(told);
        SimulatedBroker { server: Arc::clone(self), link: Arc::default(), losses }
    }

    /// From now on this goes wrong.
    pub fn set_faults(&self, faults: BrokerFaults) {
        locked(&self.injector).faults = faults;
    }

    /// What has gone wrong so far.
    pub fn hits(&self) -> BrokerHits {
        locked(&self.injector).hits
    }

    /// The items that it holds, each with where it is to run.
    pub fn live(&self) -> Vec<String> {
        locked(&self.stream).describe()
    }

    /// Remembers what the stream holds now, to be rolled back to.
    pub fn copy(&self) {
        locked(&self.stream).copy();
    }

    /// All that the stream holds is gone.
    pub async fn wipe(self: &Arc<Self>) {
        let lost = locked(&self.stream).replace(false).1;
        self.note_replaced(lost.len(), Vec::new()).await;
    }

    /// The stream holds what it held when it was last copied.
    pub async fn roll_back(self: &Arc<Self>) {
        let (back, lost) = locked(&self.stream).replace(true);
        self.note_replaced(lost.len(), back).await;
    }

    /// Some of what the stream holds is gone, and nobody notices: `share` thousandths.
    pub fn lose_from_the_middle(&self, share: u32) {
        let mut injector = locked(&self.injector);
        let lost = locked(&self.stream).doom(|| injector.thousandth() < share);
        injector.hits.items_lost += lost as u64;
    }

    async fn note_replaced(self: &Arc<Self>, lost: usize, back: Vec<Dispatch>) {
        let noticed = {
            let mut injector = locked(&self.injector);
            injector.hits.items_lost += lost as u64;
            injector.hits.replaced += 1;
            injector.within(NOTICED_WITHIN)
        };
        let stream = locked(&self.stream).broker();
        let _always_there = stream.publish(back).await;
        self.replaced.notify_waiters();
        let server = Arc::clone(self);
        tokio::spawn(async move {
            sleep(noticed).await;
            let mut told = locked(&server.losses);
            told.retain(|told| !told.is_closed());
            told.iter().for_each(|told| told.send_modify(|losses| *losses += 1));
        });
    }

    fn fate(&self) -> Fate {
        locked(&self.injector).fate()
    }

    async fn put(&self, dispatch: Dispatch) {
        let stream = locked(&self.stream).put(dispatch.clone());
        let _always_there = stream.publish(vec![dispatch]).await;
    }

    fn deliver(&self, shard: ShardId, notice: ShardNotice) {
        let owners = locked(&self.owners);
        for owner in owners.get(&shard).into_iter().flatten().filter(|owner| owner.link.is_open()) {
            // An owner that is gone is replaced, and its successor looks at every inbox.
            let _gone = owner.messages.send(ShardMessage::Notice(notice.clone()));
        }
    }

    async fn ask(&self, shard: ShardId, request: ShardRequest) -> Vec<ReportReply> {
        let owner = {
            let owners = locked(&self.owners);
            let owner = owners.get(&shard).and_then(|all| all.iter().rev().find(|owner| owner.link.is_open()));
            owner.map(|owner| (owner.messages.clone(), Arc::clone(&owner.link)))
        };
        let Some((messages, link)) = owner else { return Vec::new() };
        let answers = match request {
            ShardRequest::Report(report) => {
                let (answer, answered) = oneshot::channel();
                let _gone = messages.send(ShardMessage::Report(report, answer));
                tokio::time::timeout(ANSWER_MAX, answered).await.ok().and_then(Result::ok).into_iter().collect()
            }
            ShardRequest::Wanted(questions) => {
                let (answer, answered) = oneshot::channel();
                let _gone = messages.send(ShardMessage::Ask(questions, answer));
                tokio::time::timeout(ANSWER_MAX, answered).await.ok().and_then(Result::ok).unwrap_or_default()
            }
        };
        if link.is_open() { answers } else { Vec::new() }
    }
}

impl SimulatedBroker {
    /// Cuts this handle for ever: nothing reaches the broker by it any more, and nothing comes.
    pub fn cut(&self) {
        self.link.set(CUT);
    }

    /// Interrupts this handle, until it is resumed.
    pub fn interrupt(&self) {
        self.link.set(INTERRUPTED);
    }

    /// Ends an interruption.
    pub fn resume(&self) {
        self.link.set(OPEN);
    }
}

#[async_trait]
impl Broker for SimulatedBroker {
    async fn publish(&self, items: Vec<Dispatch>) -> Result<(), Error> {
        self.link.check()?;
        for item in items {
            match self.server.fate() {
                Fate::Plain | Fate::Doubled => self.server.put(item).await,
                Fate::Lost => {}
                Fate::Refused => return Err(Error::unavailable("no acknowledgement came")),
                Fate::Delayed(delay) => {
                    let server = Arc::clone(&self.server);
                    tokio::spawn(async move {
                        sleep(delay).await;
                        server.put(item).await;
                    });
                }
            }
        }
        Ok(())
    }

    async fn withdraw(&self, what: Withdrawal) -> Result<(), Error> {
        self.link.check()?;
        let fate = self.server.fate();
        let Withdrawal::Activity(activity) = &what else { return Ok(()) };
        match fate {
            Fate::Refused => return Err(Error::unavailable("no acknowledgement came")),
            Fate::Delayed(delay) => sleep(delay).await,
            Fate::Plain | Fate::Doubled | Fate::Lost => {}
        }
        let stream = locked(&self.server.stream).take_out(activity);
        stream.withdraw(what).await
    }

    async fn pull(
        &self,
        worker: WorkerProfile,
    ) -> Result<(Box<dyn WorkSource>, mpsc::UnboundedReceiver<Control>), Error> {
        self.link.check()?;
        let (control, listener) = mpsc::unbounded_channel();
        let mut source = Source::new(Arc::clone(&self.server), Arc::clone(&self.link), worker, control);
        source.sit_down().await;
        Ok((Box::new(source), listener))
    }

    async fn own(&self, shards: &[ShardId], receiver: mpsc::UnboundedSender<ShardMessage>) -> Result<(), Error> {
        let receiver = || Receiver { link: Arc::clone(&self.link), messages: receiver.clone() };
        let mut owners = locked(&self.server.owners);
        for shard in shards {
            let all = owners.entry(*shard).or_default();
            all.retain(|owner| !owner.messages.is_closed() && !owner.messages.same_channel(&receiver().messages));
            all.push(receiver());
        }
        drop(owners);
        // Cut off, it takes hold when the broker is back.
        self.link.check()
    }

    async fn disown(&self, shards: &[ShardId], receiver: &mpsc::UnboundedSender<ShardMessage>) {
        let mut owners = locked(&self.server.owners);
        for shard in shards {
            if let Some(all) = owners.get_mut(shard) {
                all.retain(|owner| !owner.messages.same_channel(receiver));
            }
        }
    }

    fn notify(&self, shard: ShardId, notice: ShardNotice) {
        if !self.link.is_open() {
            return;
        }
        match self.server.fate() {
            Fate::Plain => self.server.deliver(shard, notice),
            Fate::Doubled => {
                self.server.deliver(shard, notice.clone());
                self.server.deliver(shard, notice);
            }
            Fate::Lost | Fate::Refused => {}
            Fate::Delayed(delay) => {
                let server = Arc::clone(&self.server);
                tokio::spawn(async move {
                    sleep(delay).await;
                    server.deliver(shard, notice);
                });
            }
        }
    }

    async fn request(&self, shard: ShardId, request: ShardRequest) -> Vec<ReportReply> {
        if !self.link.is_open() {
            // Whoever asks waits for nothing.
            sleep(ANSWER_MAX).await;
            return Vec::new();
        }
        let answers = match self.server.fate() {
            Fate::Lost | Fate::Refused => {
                sleep(ANSWER_MAX).await;
                return Vec::new();
            }
            Fate::Doubled => {
                self.server.ask(shard, request.clone()).await;
                self.server.ask(shard, request).await
            }
            Fate::Delayed(delay) => {
                sleep(delay).await;
                self.server.ask(shard, request).await
            }
            Fate::Plain => self.server.ask(shard, request).await,
        };
        // An answer may be lost on its way back.
        let is_lost = matches!(self.server.fate(), Fate::Lost);
        if is_lost || !self.link.is_open() { Vec::new() } else { answers }
    }

    fn publish_status(&self, instance: &InstanceId, state: Option<&InstanceState>, begun_by: Option<&MessageId>) {
        if self.link.is_open() && !matches!(self.server.fate(), Fate::Lost) {
            self.server.updates.publish_status(instance, state, begun_by);
        }
    }

    fn watch(&self, instance: &InstanceId) -> StatusWatch {
        self.server.updates.watch(instance)
    }

    fn state(&self) -> BrokerState {
        BrokerState {
            is_shared: true,
            is_connected: self.link.is_open(),
            payload_bytes_max: self.server.payload_bytes_max,
            losses: self.losses.clone(),
            troubles: Vec::new(),
        }
    }
}
