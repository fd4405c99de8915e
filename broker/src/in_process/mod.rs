//! A broker inside one process: nothing to install, gone with the process, which costs nothing but time.

mod work;

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use async_trait::async_trait;
use outlast_core::{ActivityRef, InstanceId, InstanceState, MessageId, ShardId, StartSnapshot};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Broker, Control, Dispatch, Error, Question, Report, ReportReply, ShardMessage, StatusUpdate, StatusWatch,
    WorkSource, WorkerProfile,
};
use work::{Source, WorkState};

/// Fewest entries of the watch table that are worth a clean-up.
const WATCHES_SWEEP_MIN: usize = 1_024;

/// Carries work, mail and news between the runtimes and clients of one process.
#[derive(Default)]
pub struct InProcessBroker {
    work: Arc<Work>,
    mail: RwLock<HashMap<ShardId, mpsc::UnboundedSender<ShardMessage>>>,
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
    senders: HashMap<InstanceId, watch::Sender<StatusUpdate>>,
    sweep_at: usize,
}

impl Watches {
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
        Self::default()
    }

    fn owner(&self, shard: ShardId) -> Option<mpsc::UnboundedSender<ShardMessage>> {
        self.mail.read().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned()
    }

    fn post(&self, shard: ShardId, mail: ShardMessage) {
        if let Some(owner) = self.owner(shard) {
            // An owner that is gone is replaced, and its successor looks at every inbox.
            let _gone = owner.send(mail);
        }
    }

    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait.
    fn tell(&self, instance: &InstanceId, state: Option<&InstanceState>, begun_by: Option<&MessageId>) {
        let mut watches = self.watches();
        let Some(sender) = watches.senders.get(instance) else { return };
        if sender.receiver_count() == 0 {
            watches.senders.remove(instance);
        } else {
            sender.send_modify(|news| {
                let execution = state.map_or(news.execution, |state| state.execution);
                let (version, status) = (news.version + 1, state.map(InstanceState::to_status));
                *news = StatusUpdate { version, status, execution, begun_by: begun_by.cloned() };
            });
        }
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

    async fn cancel(&self, activity: &ActivityRef) -> Result<(), Error> {
        let mut state = self.work.lock();
        state.cancel(activity);
        self.work.count(&state);
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

    async fn own(&self, shards: &[ShardId], mail: mpsc::UnboundedSender<ShardMessage>) -> Result<(), Error> {
        let mut table = self.mail.write().unwrap_or_else(PoisonError::into_inner);
        table.extend(shards.iter().map(|shard| (*shard, mail.clone())));
        Ok(())
    }

    async fn disown(&self, shards: &[ShardId], mail: &mpsc::UnboundedSender<ShardMessage>) {
        let mut table = self.mail.write().unwrap_or_else(PoisonError::into_inner);
        for shard in shards {
            if table.get(shard).is_some_and(|owner| owner.same_channel(mail)) {
                table.remove(shard);
            }
        }
    }

    fn nudge(&self, shard: ShardId, instance: InstanceId) {
        self.post(shard, ShardMessage::Nudge(instance));
    }

    fn begin(&self, shard: ShardId, beginning: StartSnapshot) {
        self.post(shard, ShardMessage::Begin(Box::new(beginning)));
    }

    fn deleted(&self, shard: ShardId, instance: InstanceId) {
        self.post(shard, ShardMessage::Deleted(instance));
    }

    async fn report(&self, shard: ShardId, report: Report) -> ReportReply {
        let (answer, answered) = oneshot::channel();
        let Some(owner) = self.owner(shard) else { return ReportReply::TryAgain };
        if owner.send(ShardMessage::Report(Box::new(report), answer)).is_err() {
            return ReportReply::TryAgain;
        }
        answered.await.unwrap_or(ReportReply::TryAgain)
    }

    async fn ask(&self, shard: ShardId, questions: Vec<Question>) -> Vec<ReportReply> {
        let Some(owner) = self.owner(shard) else { return Vec::new() };
        let (answer, answered) = oneshot::channel();
        // An owner that is gone drops the answer's sender.
        let _gone = owner.send(ShardMessage::Ask(questions, answer));
        answered.await.unwrap_or_default()
    }

    fn publish_status(&self, instance: &InstanceId, state: Option<&InstanceState>) {
        self.tell(instance, state, None);
    }

    fn publish_status_of(&self, instance: &InstanceId, state: &InstanceState, begun_by: &MessageId) {
        self.tell(instance, Some(state), Some(begun_by));
    }

    fn watch(&self, instance: &InstanceId) -> StatusWatch {
        let mut watches = self.watches();
        watches.sweep();
        watches.senders.entry(instance.clone()).or_insert_with(|| watch::channel(StatusUpdate::default()).0).subscribe()
    }

    fn activity_counter(&self) -> Option<Arc<AtomicUsize>> {
        Some(Arc::clone(&self.work.outstanding))
    }
}
