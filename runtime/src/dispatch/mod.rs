//! Handing activities to the broker: those that a turn has scheduled, a worker has given back or a broker may have lost.
//!
//! `outstanding` keeps activities without an outcome, `offers` offers them again, `unregistered` deals with those that no worker
//! has registered, `kv_reads` with reads that need no worker. Nothing here is durable: hydration restores it from the histories.

pub(crate) mod kv_reads;
pub(crate) mod offers;
pub(crate) mod outstanding;
pub(crate) mod unregistered;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast_broker::{Broker, Dispatch, Withdrawal};
use outlast_client::Surroundings;
use outlast_core::{
    ActivityItem, ActivityKey, ActivityRef, ErrorDetails, Message, MessageId, MessageKind, Token, WorkerId,
};
use outlast_storage::Store;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::RuntimeOptions;
use crate::dispatch::outstanding::{Outstanding, Terms, strip_input};
use crate::instances::mailbox::{Inbound, Mailboxes};
use crate::node::bounds::UnderWay;
use crate::node::node_task::NodeTask;
use crate::node::supervision::Supervisor;
use crate::problems::known::Problems;
use crate::problems::lasting::Refusal;
use crate::shards::neighbours::Neighbours;
use crate::shards::tenure::Tenure;
use crate::telemetry::counters::Counters;
use crate::telemetry::logging::RUNTIME;

/// Pause before activities are published again, after the broker itself has tried for seconds.
const PUBLISH_AGAIN: Duration = Duration::from_secs(1);

/// Why activities were not handed out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error(transparent)]
    Store(#[from] outlast_storage::Error),
    #[error(transparent)]
    Broker(#[from] outlast_broker::Error),
}

/// The message id of an activity's result.
pub(crate) fn result_id(key: &ActivityKey, token: Token) -> MessageId {
    MessageId::new(format!("activity:{}:{}:{:016x}", key.execution, key.event, token.0))
}

/// What dispatching needs from the rest of a node.
pub(crate) struct DispatchParts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) options: Arc<RuntimeOptions>,
    pub(crate) tenure: Arc<Tenure>,
    pub(crate) neighbours: Arc<Neighbours>,
    pub(crate) problems: Arc<Problems>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) supervisor: Arc<Supervisor>,
    pub(crate) stopping: CancellationToken,
    pub(crate) surroundings: Surroundings,
    /// Receives the outcomes that no worker produced.
    pub(crate) instances: Arc<dyn Mailboxes>,
}

/// Hands activities to the broker until their outcome is in a history.
pub(crate) struct Dispatcher {
    parts: DispatchParts,
    /// Activities without an outcome: the broker carries them and might lose them.
    pub(crate) outstanding: Outstanding,
    /// Tries of activities that no worker had registered.
    unregistered: Mutex<BTreeMap<ActivityRef, u32>>,
    /// Values of other instances that are being read.
    reads: UnderWay,
}

impl Dispatcher {
    pub(crate) fn new(parts: DispatchParts) -> Self {
        let outstanding = Outstanding::new(parts.options.limits.dispatch_window);
        Self { parts, outstanding, unregistered: Mutex::default(), reads: UnderWay::default() }
    }

    /// Whether no value is being read and no unregistered activity is still being tried.
    pub(crate) fn is_quiet(&self) -> bool {
        self.lock_unregistered().is_empty() && self.reads.is_none()
    }

    /// Hands activities to the broker, as far as it has room for them; `terms` says whether they may have run before.
    pub(crate) async fn dispatch(self: &Arc<Self>, items: Vec<ActivityItem>, terms: Terms) {
        self.parts.counters.dispatched.fetch_add(items.len() as u64, std::sync::atomic::Ordering::Relaxed);
        let admitted = self.outstanding.admit(items, terms);
        if !admitted.is_empty() {
            self.hand_out(admitted, terms.may_have_run).await;
        }
    }

    /// Gives the broker these activities, trying until it takes them.
    pub(crate) async fn hand_out(self: &Arc<Self>, items: Vec<ActivityItem>, may_have_run: bool) {
        let count = items.len();
        let Err(error) = self.publish(&items, may_have_run).await else { return };
        tracing::warn!(target: RUNTIME, %error, count, "activities were not published, trying again");
        let items = Arc::new(items);
        self.until_done(move |dispatcher| {
            let items = Arc::clone(&items);
            async move {
                // From now on they may have run: a publish that failed may still have reached the broker.
                while !dispatcher.parts.stopping.is_cancelled() && dispatcher.publish(&items, true).await.is_err() {
                    tokio::time::sleep(PUBLISH_AGAIN).await;
                }
            }
        });
    }

    /// Runs `work` in a task of its own, and again after a panic: nobody else would do it.
    fn until_done<F>(self: &Arc<Self>, work: impl Fn(Arc<Self>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (dispatcher, done) = (Arc::clone(self), self.parts.stopping.child_token());
        let asked = done.clone();
        self.parts.surroundings.spawn(Arc::clone(&self.parts.supervisor).keep(NodeTask::Dispatch, asked, move || {
            let (work, done) = (work(Arc::clone(&dispatcher)), done.clone());
            async move {
                work.await;
                done.cancel();
            }
        }));
    }

    /// Publishes activities; a refusal is noted as a problem.
    pub(crate) async fn publish(&self, items: &[ActivityItem], may_have_run: bool) -> Result<(), PublishError> {
        let published = self.try_publish(items, may_have_run).await;
        match (&published, items.first()) {
            (Ok(()), _) => self.parts.problems.troubles.broker.end(&()),
            (Err(error), Some(first)) => {
                self.parts
                    .problems
                    .troubles
                    .broker
                    .note((), Refusal { reason: error.to_string(), first: first.clone() });
            }
            (Err(_), None) => {}
        }
        published
    }

    async fn try_publish(&self, items: &[ActivityItem], may_have_run: bool) -> Result<(), PublishError> {
        let max = self.parts.broker.state().payload_bytes_max;
        let mut dispatches: Vec<Dispatch> = items
            .iter()
            .map(|item| Dispatch { item: strip_input(item, max), worker: None, again: may_have_run })
            .collect();
        let sessions: Vec<String> = items.iter().filter_map(|item| item.session_id.clone()).collect();
        if !sessions.is_empty() {
            let owners = self.parts.store.session_owners(&sessions).await?;
            let bound = dispatches.iter_mut().filter(|dispatch| dispatch.item.session_id.is_some());
            for (dispatch, owner) in bound.zip(owners) {
                self.outstanding.brought_to(&dispatch.item.key, owner.as_ref());
                dispatch.worker = owner;
            }
        }
        Ok(self.parts.broker.publish(dispatches).await?)
    }

    /// Gives an activity an outcome that no worker produced.
    pub(crate) fn complete(self: &Arc<Self>, key: &ActivityKey, token: Token, outcome: Result<String, ErrorDetails>) {
        let kind = MessageKind::ActivityDone { execution: key.execution, event: key.event, token, outcome, run: None };
        let message = Message { id: result_id(key, token), kind };
        let (answer, answered) = oneshot::channel();
        self.parts.instances.deliver(&key.instance, Inbound::Direct(message, answer));
        // If the turn fails, hydration hands the activity out again, so the answer is of no interest.
        drop(answered);
    }

    /// Tells workers of activities that are not wanted.
    pub(crate) async fn stop_activities(&self, activities: Vec<ActivityRef>) {
        for activity in activities {
            self.registered(&activity);
            if let Err(error) = self.parts.broker.withdraw(Withdrawal::Activity(activity)).await {
                tracing::warn!(target: RUNTIME, %error, "a cancellation was not sent: its worker will ask");
            }
        }
    }

    /// These workers have disappeared: items sent to them alone are handed out again.
    pub(crate) async fn workers_lost(&self, workers: &[WorkerId]) {
        for worker in workers {
            tracing::warn!(target: RUNTIME, %worker, "a worker is gone, its work is handed out again");
            if let Err(error) = self.parts.broker.withdraw(Withdrawal::Worker(worker.clone())).await {
                tracing::warn!(target: RUNTIME, %worker, %error, "what was brought to a dead worker stays queued");
            }
        }
        if !workers.is_empty() {
            // Another worker may have passed an item on to the one that is gone, without this node knowing.
            self.outstanding.mark_sessions_due();
        }
    }
}
