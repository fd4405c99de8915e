//! A node among the others: it is there before it does anything, and it leaves however its runtime ends, be it by a shutdown, by
//! a drop in or outside of an executor, or by a start that failed, panicked or was given up half-way.
//!
//! All of it runs on the thread of the renewals, which outlasts callers and their executors. Whoever tells the store of a node holds
//! `Node::gone` meanwhile: a statement that arrives after the farewell would leave a ghost, which holds a share of the shards and
//! serves nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outlast_broker::{ShardMessage, Withdrawal};
use outlast_core::WorkerId;
use outlast_storage::{Error, NodeInfo};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::node::dedicated_thread::RENEWALS;
use crate::shards::owner::Owner;
use crate::telemetry::logging::RUNTIME;

/// How long each part of a farewell is tried.
const FAREWELL_MAX: Duration = Duration::from_secs(15);
/// Pause before it is tried again.
const FAREWELL_AGAIN: Duration = Duration::from_millis(100);

/// A node that is there until this is dropped.
pub(crate) struct Presence {
    owner: Arc<Owner>,
    worker: WorkerId,
    messages: mpsc::UnboundedSender<ShardMessage>,
    left: AtomicBool,
}

impl Presence {
    /// Nobody knows of the node yet; whatever happens from now on, nobody does in the end.
    pub(crate) fn new(owner: Arc<Owner>, worker: WorkerId, messages: mpsc::UnboundedSender<ShardMessage>) -> Self {
        Self { owner, worker, messages, left: AtomicBool::new(false) }
    }

    /// Leaves, once. It takes place also when nobody waits for it.
    pub(crate) fn leave(&self) -> Option<JoinHandle<()>> {
        if self.left.swap(true, Ordering::AcqRel) {
            return None;
        }
        let (owner, worker, messages) = (Arc::clone(&self.owner), self.worker.clone(), self.messages.clone());
        Some(RENEWALS.spawn(&self.owner.surroundings, say_farewell(owner, worker, messages)))
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // Nobody waits for it.
        drop(self.leave());
    }
}

/// Tells the store who this node is and what it serves.
pub(crate) async fn announce(owner: &Arc<Owner>, info: NodeInfo) -> Result<(), Error> {
    let joining = Arc::clone(owner);
    let joined = RENEWALS.spawn(&owner.surroundings, async move {
        let gone = joining.tenure.has_left.lock().await;
        if *gone { Err(has_left()) } else { joining.store.join(info).await }
    });
    joined.await.unwrap_or_else(|_| Err(Error::Unavailable("the announcement of the node panicked".to_owned())))
}

/// What a node that has left is told.
pub(crate) fn has_left() -> Error {
    Error::Unusable("the node has left".to_owned())
}

async fn say_farewell(owner: Arc<Owner>, worker: WorkerId, messages: mpsc::UnboundedSender<ShardMessage>) {
    // From here on nothing tells the store of this node any more.
    *owner.tenure.has_left.lock().await = true;
    let held = owner.tenure.held();
    let left = async {
        insist("sessions", || owner.store.release_sessions(&worker, None)).await;
        // Not before its sessions are free: until then, owners bring items of them to it.
        let withdrawn = owner.broker.withdraw(Withdrawal::Worker(worker.clone()));
        let (withdrawn, ()) = tokio::join!(withdrawn, insist("shards", || owner.store.leave(&owner.id)));
        if let Err(error) = withdrawn {
            tracing::debug!(target: RUNTIME, %worker, %error, "what was brought to this worker alone stays queued until others find it gone");
        }
    };
    // At once: a broker that is away does not delay the store.
    tokio::join!(owner.broker.disown(&held, &messages), left);
}

/// Connections may have ended with the executor that made them, so a failure is no reason to give up at once.
async fn insist<F: Future<Output = Result<(), Error>>>(what: &str, release: impl Fn() -> F) {
    let released = async {
        while let Err(error) = release().await {
            tracing::debug!(target: RUNTIME, %error, what, "not released, trying again");
            tokio::time::sleep(FAREWELL_AGAIN).await;
        }
    };
    if tokio::time::timeout(FAREWELL_MAX, released).await.is_err() {
        tracing::warn!(target: RUNTIME, what, "not released: the store does not answer; others take them when the lease has ended");
    }
}
