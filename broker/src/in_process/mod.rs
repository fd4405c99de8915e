//! A broker inside one process: nothing to install, gone with the process, which costs nothing but time.

mod work;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use async_trait::async_trait;
use outlast_core::{InstanceId, InstanceState, MessageId, ShardId};
use tokio::sync::{mpsc, watch};

use crate::owner::ask_owner;
use crate::{
    Broker, BrokerState, Control, Dispatch, Error, ReportReply, ShardMessage, ShardNotice, ShardRequest, StatusUpdate,
    StatusWatch, Withdrawal, WorkSource, WorkerProfile,
};
use work::{Source, WorkState};

/// Fewest entries of the watch table that are worth a clean-up: fewer take no memory to speak of.
const WATCHES_SWEEP_MIN: usize = 1_024;

/// Carries work, shard messages and status updates between the runtimes and clients of one process.
pub struct InProcessBroker {
    work: Arc<Work>,
    /// Never rises: what is in this process is lost with it alone.
    losses: watch::Receiver<u64>,
    owners: RwLock<BTreeMap<ShardId, mpsc::UnboundedSender<ShardMessage>>>,
    watches: Mutex<Watches>,
}

/// The queues of all workers, behind one short lock.
#[derive(Default)]
pub(crate) struct Work {
    state: Mutex<WorkState>,
    outstanding: Arc<AtomicUsize>,
}

impl Work {
    pub(crate) fn lock(&self) -> MutexGuard<'_, WorkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes how many items are queued or in flight.
    pub(crate) fn count(&self, state: &WorkState) {
        self.outstanding.store(state.outstanding(), std::sync::atomic::Ordering::Release);
    }
}

#[derive(Default)]
struct Watches {
    senders: BTreeMap<InstanceId, watch::Sender<StatusUpdate>>,
    sweep_at: usize,
}

impl Watches {
    /// The way to those who wait for an instance; `None` when nobody does.
    fn listened_to(&mut self, instance: &InstanceId) -> Option<watch::Sender<StatusUpdate>> {
        let sender = self.senders.get(instance)?;
        if sender.receiver_count() == 0 {
            self.senders.remove(instance);
            return None;
        }
        Some(sender.clone())
    }

    /// Drops entries that nobody listens to, whenever the table has doubled.
    fn sweep(&mut self) {
        if self.senders.len() >= self.sweep_at.max(WATCHES_SWEEP_MIN) {
            self.senders.retain(|_, sender| sender.receiver_count() > 0);
            self.sweep_at = self.senders.len() * 2;
        }
    }
}

impl InProcessBroker {
    /// An empty broker.
    pub fn new() -> Self {
        let losses = watch::channel(0).1;
        Self { work: Arc::default(), losses, owners: RwLock::default(), watches: Mutex::default() }
    }

    fn owner(&self, shard: ShardId) -> Option<mpsc::UnboundedSender<ShardMessage>> {
        self.owners.read().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned()
    }

    /// Counts the items that are queued or in flight, for whoever moves virtual time.
    pub fn outstanding(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.work.outstanding)
    }

    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for InProcessBroker {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Broker for InProcessBroker {
    async fn publish(&self, items: Vec<Dispatch>) -> Result<(), Error> {
        let mut state = self.work.lock();
        for dispatch in items {
            state.publish(dispatch);
        }
        self.work.count(&state);
        Ok(())
    }

    async fn withdraw(&self, what: Withdrawal) -> Result<(), Error> {
        match what {
            Withdrawal::Activity(activity) => {
                let mut state = self.work.lock();
                state.cancel(&activity);
                self.work.count(&state);
            }
            // The workers of one process leave in order, and then give back what they have.
            Withdrawal::Worker(_) => {}
        }
        Ok(())
    }

    async fn pull(
        &self,
        worker: WorkerProfile,
    ) -> Result<(Box<dyn WorkSource>, mpsc::UnboundedReceiver<Control>), Error> {
        let (control, listener) = mpsc::unbounded_channel();
        let id = worker.id.clone();
        let wake = self.work.lock().join(worker, control);
        Ok((Box::new(Source::new(Arc::clone(&self.work), id, wake)), listener))
    }

    async fn own(&self, shards: &[ShardId], receiver: mpsc::UnboundedSender<ShardMessage>) -> Result<(), Error> {
        let mut table = self.owners.write().unwrap_or_else(PoisonError::into_inner);
        table.extend(shards.iter().map(|shard| (*shard, receiver.clone())));
        Ok(())
    }

    async fn disown(&self, shards: &[ShardId], receiver: &mpsc::UnboundedSender<ShardMessage>) {
        let mut table = self.owners.write().unwrap_or_else(PoisonError::into_inner);
        for shard in shards {
            if table.get(shard).is_some_and(|owner| owner.same_channel(receiver)) {
                table.remove(shard);
            }
        }
    }

    fn notify(&self, shard: ShardId, notice: ShardNotice) {
        if let Some(owner) = self.owner(shard) {
            // An owner that is gone is replaced, and its successor looks at every inbox.
            let _gone = owner.send(ShardMessage::Notice(notice));
        }
    }

    async fn request(&self, shard: ShardId, request: ShardRequest) -> Vec<ReportReply> {
        let Some(owner) = self.owner(shard) else { return Vec::new() };
        match request {
            ShardRequest::Report(report) => {
                ask_owner(owner, |answer| ShardMessage::Report(report, answer)).await.into_iter().collect()
            }
            ShardRequest::Wanted(questions) => {
                ask_owner(owner, |answer| ShardMessage::Ask(questions, answer)).await.unwrap_or_default()
            }
        }
    }

    fn publish_status(&self, instance: &InstanceId, state: Option<&InstanceState>, begun_by: Option<&MessageId>) {
        // Every start and every wait locks the table, so it is unlocked again before waiters are woken.
        let Some(sender) = self.watches().listened_to(instance) else { return };
        sender.send_modify(|update| {
            let execution = state.map_or(update.execution, |state| state.execution);
            let (version, status) = (update.version + 1, state.map(InstanceState::to_status));
            *update = StatusUpdate { version, status, execution, begun_by: begun_by.cloned() };
        });
    }

    fn watch(&self, instance: &InstanceId) -> StatusWatch {
        let mut watches = self.watches();
        watches.sweep();
        watches.senders.entry(instance.clone()).or_insert_with(|| watch::channel(StatusUpdate::default()).0).subscribe()
    }

    fn state(&self) -> BrokerState {
        BrokerState {
            is_shared: false,
            is_connected: true,
            payload_bytes_max: usize::MAX,
            losses: self.losses.clone(),
            troubles: Vec::new(),
        }
    }
}
