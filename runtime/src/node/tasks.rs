//! The long-lived tasks of a node: how each begins, and what is made good when one begins anew.

use std::sync::{Arc, Mutex, PoisonError};

use outlast_broker::ShardMessage;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dispatch::outstanding;
use crate::node::Node;
use crate::node::supervision::NodeTask;
use crate::problems::report;
use crate::shards::renewal::Renewal;
use crate::shards::{membership, owner};
use crate::worker::Worker;

/// The tasks of a runtime, as its shutdown sees them.
#[derive(Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    aborts: Mutex<Vec<AbortHandle>>,
}

impl Tasks {
    fn spawn<F>(
        &self,
        node: &Arc<Node>,
        (task, asked): (NodeTask, &CancellationToken),
        start: impl FnMut() -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let spawned = self.tracker.spawn(Arc::clone(&node.supervisor).keep(task, asked.clone(), start));
        self.aborts.lock().unwrap_or_else(PoisonError::into_inner).push(spawned.abort_handle());
    }

    /// A task that needs nothing but its node.
    fn spawn_plain<F>(&self, node: &Arc<Node>, task: NodeTask, start: impl Fn(Arc<Node>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let kept = Arc::clone(node);
        self.spawn(node, (task, &node.stopping), move || start(Arc::clone(&kept)));
    }

    /// Returns when all have ended, which they have been told to.
    pub(crate) async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Ends those that have not.
    pub(crate) fn abort(&self) {
        self.aborts.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(AbortHandle::abort);
    }

    /// Reading what comes for the node's shards; before it takes the first one.
    pub(crate) fn spawn_reader(&self, node: &Arc<Node>, mailbox: mpsc::UnboundedReceiver<ShardMessage>) {
        let mailbox = Arc::new(tokio::sync::Mutex::new(mailbox));
        let (kept, mut anew) = (Arc::clone(node), false);
        self.spawn(node, (NodeTask::ShardMessages, &node.stopping), move || {
            // What was in hand is lost in memory: the inboxes still have it. Workers repeat their reports.
            if std::mem::replace(&mut anew, true) {
                owner::take_over(&kept, kept.held());
            }
            owner::read_mail(Arc::clone(&kept), Arc::clone(&mailbox))
        });
    }

    /// All that serve the node's shards, and those that look after the node itself.
    pub(crate) fn spawn_owner(
        &self,
        node: &Arc<Node>,
        mail: &mpsc::UnboundedSender<ShardMessage>,
        renewals: watch::Receiver<Renewal>,
    ) {
        // It reads all that is due when it begins.
        self.spawn_plain(node, NodeTask::DueQueue, owner::keep_time);
        // It reads all inboxes when it begins.
        self.spawn_plain(node, NodeTask::InboxSweep, owner::watch_store);
        // What it takes out has its outcome before anything can fail.
        self.spawn_plain(node, NodeTask::LateWork, outstanding::end_late);
        if node.broker.is_shared() {
            // It looks at all that is outstanding again and again.
            self.spawn_plain(node, NodeTask::Offers, outstanding::offer_again);
        }
        let (kept, mut anew) = (Arc::clone(node), false);
        self.spawn(node, (NodeTask::WaitingWork, &node.stopping), move || {
            let (node, again) = (Arc::clone(&kept), std::mem::replace(&mut anew, true));
            async move {
                if again {
                    outstanding::offer_all(&node).await;
                }
                outstanding::give_waiting(node).await;
            }
        });
        let (kept, sender, mut anew) = (Arc::clone(node), mail.clone(), false);
        self.spawn(node, (NodeTask::Shares, &node.stopping), move || {
            let (node, mail, renewals) = (Arc::clone(&kept), sender.clone(), renewals.clone());
            let again = std::mem::replace(&mut anew, true);
            async move {
                if again {
                    membership::serve_again(&node, &mail).await;
                }
                membership::keep_share(node, mail, renewals).await;
            }
        });
        let (kept, sender) = (Arc::clone(node), mail.clone());
        self.spawn(node, (NodeTask::Departure, &node.stopping), move || {
            membership::leave_when_failing(Arc::clone(&kept), sender.clone())
        });
    }

    /// Reporting what stands still; it reports all that it finds when it begins.
    pub(crate) fn spawn_report(&self, node: &Arc<Node>, worker: &Arc<Worker>) {
        let worker = Arc::clone(worker);
        self.spawn_plain(node, NodeTask::Problems, move |node| report::watch(node, Arc::clone(&worker)));
    }

    /// Pulling activities. Its successor opens a source of its own; what the lost one had not handed out goes back to the broker
    /// with it.
    pub(crate) fn spawn_worker(&self, node: &Arc<Node>, worker: &Arc<Worker>) {
        let kept = Arc::clone(worker);
        self.spawn(node, (NodeTask::Worker, &worker.draining), move || Arc::clone(&kept).run());
    }
}
