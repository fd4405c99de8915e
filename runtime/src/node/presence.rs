//! Announces a node before it does anything, and makes it leave however its runtime ends: by a shutdown, by a drop inside or
//! outside an executor, or by a start that failed, panicked or was dropped half-way.
//!
//! Everything here runs on the renewal thread, which outlives callers and their executors. Whoever tells the store about a node
//! holds the lock `Tenure::has_left`: a statement that arrived after the farewell would leave a ghost, which holds a share of the
//! shards and serves nobody.

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

/// How long each part of a farewell is tried: three leases by default, after which others have what this node held.
const FAREWELL_MAX: Duration = Duration::from_secs(15);
/// Pause before it is tried again: a connection is most often back within a few of them.
const FAREWELL_AGAIN: Duration = Duration::from_millis(100);

/// Keeps a node present until this is dropped.
pub(crate) struct Presence {
    owner: Arc<Owner>,
    worker: WorkerId,
    messages: mpsc::UnboundedSender<ShardMessage>,
    left: AtomicBool,
}

impl Presence {
    /// For a node that nobody knows yet: whatever happens from now on, it leaves in the end.
    pub(crate) fn new(owner: Arc<Owner>, worker: WorkerId, messages: mpsc::UnboundedSender<ShardMessage>) -> Self {
        Self { owner, worker, messages, left: AtomicBool::new(false) }
    }

    /// Leaves, once. The farewell goes on even if nobody awaits it.
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
        // It goes on by itself.
        drop(self.leave());
    }
}

/// Tells the store who this node is and what it serves.
pub(crate) async fn announce(owner: &Arc<Owner>, info: NodeInfo) -> Result<(), Error> {
    let joining = Arc::clone(owner);
    let joined = RENEWALS.spawn(&owner.surroundings, async move {
        // Held until the store has answered, so that a farewell waits and comes last.
        let gone = joining.tenure.has_left.lock().await;
        if *gone { Err(has_left()) } else { joining.store.join(info).await }
    });
    joined.await.unwrap_or_else(|_| Err(Error::unavailable("the announcement of the node panicked")))
}

/// The error for a node that has left.
pub(crate) fn has_left() -> Error {
    Error::unusable("the node has left")
}

async fn say_farewell(owner: Arc<Owner>, worker: WorkerId, messages: mpsc::UnboundedSender<ShardMessage>) {
    // Waits for statements under way; later ones are refused.
    *owner.tenure.has_left.lock().await = true;
    let held = owner.tenure.held();
    let left = async {
        insist("sessions", || owner.store.release_sessions(&worker, None)).await;
        // Only after its sessions are free: until then, owners bring their items to this worker.
        let withdrawn = owner.broker.withdraw(Withdrawal::Worker(worker.clone()));
        let (withdrawn, ()) = tokio::join!(withdrawn, insist("shards", || owner.store.leave(&owner.id)));
        if let Err(error) = withdrawn {
            tracing::debug!(target: RUNTIME, %worker, %error, "items queued for this worker alone stay queued until others find it gone");
        }
    };
    // Both at once: a broker that is away must not delay the store.
    tokio::join!(owner.broker.disown(&held, &messages), left);
}

/// Tries for a while: connections may have ended with the executor that made them.
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
