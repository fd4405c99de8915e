//! Renewing leases, on a thread of its own.
//!
//! User code may keep every thread of its executor busy for longer than a lease, so a renewal waits for nothing there.
//! `membership` acts on what a renewal shows, on the executor.

use std::sync::Arc;
use std::time::Duration;

use outlast_storage::{Error, LeaseView};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::node::dedicated_thread::RENEWALS;
use crate::node::node_task::NodeTask;
use crate::shards::owner::Owner;
use crate::telemetry::logging::RUNTIME;

/// Longest time between two renewals; a lease is renewed three times in its life.
const RENEW_EVERY_MAX: Duration = Duration::from_millis(500);
/// Time between two renewals of a lease that cannot end: they only read memory, and show which nodes have left, so that
/// runtimes of one process hand over at once.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Pause after a renewal that failed: several tries fit into what is left of the shortest usual lease.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A renewal that succeeded.
#[derive(Clone)]
pub(crate) struct Renewal {
    /// When the store was asked.
    pub(crate) sent: Instant,
    pub(crate) view: LeaseView,
}

/// Renews at once, then again and again until the node stops; returns what each renewal shows, beginning with the first.
pub(crate) async fn begin(owner: &Arc<Owner>) -> Result<watch::Receiver<Renewal>, Error> {
    let first = RENEWALS.spawn(&owner.surroundings, renew(Arc::clone(owner))).await;
    let first = first.unwrap_or_else(|_| Err(Error::unavailable("the renewal of the lease panicked")))?;
    let (renewals, shown) = watch::channel(first);
    let (kept, renewals) = (Arc::clone(owner), Arc::new(renewals));
    let asked = owner.stopping.clone();
    RENEWALS.spawn(
        &owner.surroundings,
        Arc::clone(&owner.supervisor)
            .keep(NodeTask::Renewal, asked, move || keep_renewing(Arc::clone(&kept), Arc::clone(&renewals))),
    );
    Ok(shown)
}

async fn keep_renewing(owner: Arc<Owner>, renewals: Arc<watch::Sender<Renewal>>) {
    let mut pause = pause_of(&renewals.borrow().view);
    loop {
        tokio::select! {
            biased;
            () = owner.stopping.cancelled() => return leave_abandoned(&owner).await,
            () = tokio::time::sleep(pause) => {}
        }
        match renew(Arc::clone(&owner)).await {
            Ok(renewal) => {
                // The lease counts from when the renewal was sent, so after a slow renewal the next one follows at once.
                pause = pause_of(&renewal.view).saturating_sub(renewal.sent.elapsed());
                renewals.send_replace(renewal);
            }
            Err(error) => {
                tracing::warn!(target: RUNTIME, %error, "the lease could not be renewed, trying again");
                pause = AGAIN_AFTER;
            }
        }
    }
}

/// Leaves for a node whose executor has ended without a shutdown: nobody else is left to tell the store. It may fail where leases
/// end by themselves.
async fn leave_abandoned(owner: &Owner) {
    if owner.supervisor.is_abandoned()
        && let Err(error) = owner.store.leave(&owner.id).await
    {
        tracing::warn!(target: RUNTIME, %error, "shards were not released; others take them when the lease has ended");
    }
}

async fn renew(owner: Arc<Owner>) -> Result<Renewal, Error> {
    // Held until the store has answered, so that no renewal reaches the store after the farewell.
    let gone = owner.tenure.has_left.lock().await;
    if *gone {
        return Err(crate::node::presence::has_left());
    }
    let sent = Instant::now();
    let view = owner.store.renew(&owner.id).await?;
    owner.tenure.renewed(sent, view.lease);
    if let Some(reason) = &view.set_back {
        // Not left to `membership`: it may be busy and see only a later renewal, which replaces this one.
        tracing::error!(
            target: RUNTIME,
            %reason,
            "the store went back to an older state; all that is in memory is dropped and read again; \
             what was acknowledged after that state is lost"
        );
        owner.tenure.begin_generation();
    }
    Ok(Renewal { sent, view })
}

fn pause_of(view: &LeaseView) -> Duration {
    if view.lease == Duration::MAX { LOOK_EVERY } else { (view.lease / 3).min(RENEW_EVERY_MAX) }
}
