//! The long-lived tasks of a node: how each starts, and what a restarted one recovers first.

use std::sync::{Arc, Mutex, PoisonError};

use outlast_broker::ShardMessage;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dispatch::{Dispatcher, offers};
use crate::node::node_task::NodeTask;
use crate::problems::report::{self, Watched};
use crate::shards::owner::Owner;
use crate::shards::renewal::Renewal;
use crate::shards::{due_times, inbox_sweep, membership, messages, take_over};
use crate::worker::Worker;

/// The tasks of a runtime, as its shutdown sees them.
pub(crate) struct Tasks {
    owner: Arc<Owner>,
    tracker: TaskTracker,
    aborts: Mutex<Vec<AbortHandle>>,
}

impl Tasks {
    pub(crate) fn new(owner: Arc<Owner>) -> Self {
        Self { owner, tracker: TaskTracker::new(), aborts: Mutex::default() }
    }

    /// Returns when all tasks have ended; they must have been told to.
    pub(crate) async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Aborts tasks that have not.
    pub(crate) fn abort(&self) {
        self.aborts.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(AbortHandle::abort);
    }

    /// Starts to receive messages for the node's shards; call it before the node takes a shard.
    pub(crate) fn spawn_receiver(&self, receiver: mpsc::UnboundedReceiver<ShardMessage>) {
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        let (owner, mut anew) = (Arc::clone(&self.owner), false);
        self.spawn(NodeTask::ShardMessages, &self.owner.stopping, move || {
            // Messages in hand are lost, but the inboxes still have them. Workers repeat their reports.
            if std::mem::replace(&mut anew, true) {
                take_over::take_over(&owner, owner.tenure.held());
            }
            messages::receive(Arc::clone(&owner), Arc::clone(&receiver))
        });
    }

    /// Starts the tasks that serve the node's shards and those that look after the node itself.
    pub(crate) fn spawn_owner(
        &self,
        messages: &mpsc::UnboundedSender<ShardMessage>,
        renewals: watch::Receiver<Renewal>,
    ) {
        // It begins by reading everything due.
        self.spawn_duty(NodeTask::DueQueue, due_times::wake_due);
        // It begins by reading all inboxes.
        self.spawn_duty(NodeTask::InboxSweep, inbox_sweep::watch_inboxes);
        // Every activity it takes out gets its outcome before anything can fail.
        self.spawn_dispatch(NodeTask::LateWork, offers::end_late);
        if self.owner.broker.state().is_shared {
            // It looks through everything outstanding again and again.
            self.spawn_dispatch(NodeTask::Offers, offers::offer_again);
        }
        let (dispatcher, mut anew) = (Arc::clone(&self.owner.dispatcher), false);
        self.spawn(NodeTask::WaitingWork, &self.owner.stopping, move || {
            let (dispatcher, is_successor) = (Arc::clone(&dispatcher), std::mem::replace(&mut anew, true));
            async move {
                if is_successor {
                    offers::offer_all(&dispatcher).await;
                }
                offers::give_waiting(dispatcher).await;
            }
        });
        let (owner, sender, mut anew) = (Arc::clone(&self.owner), messages.clone(), false);
        self.spawn(NodeTask::Shares, &self.owner.stopping, move || {
            let (owner, messages, renewals) = (Arc::clone(&owner), sender.clone(), renewals.clone());
            let is_successor = std::mem::replace(&mut anew, true);
            async move {
                if is_successor {
                    membership::serve_again(&owner, &messages).await;
                }
                membership::keep_share(owner, messages, renewals).await;
            }
        });
        let sender = messages.clone();
        self.spawn_duty(NodeTask::Departure, move |owner| membership::leave_when_failing(owner, sender.clone()));
    }

    /// Starts to report what stands still; once restarted, it reports everything it finds.
    pub(crate) fn spawn_report(&self, watched: Watched) {
        let watched = Arc::new(watched);
        self.spawn(NodeTask::Problems, &self.owner.stopping, move || report::watch(Arc::clone(&watched)));
    }

    /// Starts to pull activities. Once restarted, it opens a new source; items that the old one had not handed out go back to the
    /// broker.
    pub(crate) fn spawn_worker(&self, worker: &Arc<Worker>) {
        let kept = Arc::clone(worker);
        self.spawn(NodeTask::Worker, &worker.draining, move || Arc::clone(&kept).run());
    }

    /// A task that needs nothing but the owner.
    fn spawn_duty<F>(&self, task: NodeTask, start: impl Fn(Arc<Owner>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let owner = Arc::clone(&self.owner);
        self.spawn(task, &self.owner.stopping, move || start(Arc::clone(&owner)));
    }

    /// A task that needs nothing but the dispatcher.
    fn spawn_dispatch<F>(&self, task: NodeTask, start: impl Fn(Arc<Dispatcher>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let dispatcher = Arc::clone(&self.owner.dispatcher);
        self.spawn(task, &self.owner.stopping, move || start(Arc::clone(&dispatcher)));
    }

    fn spawn<F>(&self, task: NodeTask, asked: &CancellationToken, start: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let kept = Arc::clone(&self.owner.supervisor).keep(task, asked.clone(), start);
        let spawned = self.owner.surroundings.spawn(self.tracker.track_future(kept));
        self.aborts.lock().unwrap_or_else(PoisonError::into_inner).push(spawned.abort_handle());
    }
}
