//! Sharing out the shards among the live nodes.

use std::sync::Arc;
use std::time::Duration;

use outlast_broker::ShardMessage;
use outlast_core::{NodeId, ShardId};
use outlast_storage::{HeldShard, LeaseView, NodeInfo};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::shards::owner::Owner;
use crate::shards::renewal::Renewal;
use crate::telemetry::logging::RUNTIME;

/// How often a failing node looks for nodes that can take its shards: it reads memory alone.
const LOOK_FOR_OTHERS_EVERY: Duration = Duration::from_secs(1);

/// What a node should change about its shards.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Rebalance {
    pub(crate) release: Vec<ShardId>,
    pub(crate) acquire: Vec<ShardId>,
}

/// An even share: every node with code holds `shards / nodes`, the first ones (by id) one more.
pub(crate) fn rebalance(me: &NodeId, view: &LeaseView) -> Rebalance {
    let nodes: Vec<&NodeId> = view.nodes.iter().filter(|node| !node.handlers.is_empty()).map(|node| &node.id).collect();
    let Some(rank) = nodes.iter().position(|id| *id == me) else {
        return Rebalance { release: view.held.iter().map(|held| held.shard).collect(), acquire: Vec::new() };
    };
    let quota = view.owners.len() / nodes.len() + usize::from(rank < view.owners.len() % nodes.len());
    let mut held: Vec<ShardId> = view.held.iter().map(|held| held.shard).collect();
    held.sort_unstable();
    let release = held.split_off(held.len().min(quota));
    let missing = quota - held.len();
    let free = view.owners.iter().enumerate().filter(|(_, owner)| owner.is_none());
    let acquire = free.filter_map(|(index, _)| u16::try_from(index).ok().map(ShardId)).take(missing).collect();
    Rebalance { release, acquire }
}

/// Corrects the node's share of the shards after each renewal, until the node stops.
pub(crate) async fn keep_share(
    owner: Arc<Owner>,
    messages: mpsc::UnboundedSender<ShardMessage>,
    mut renewals: watch::Receiver<Renewal>,
) {
    let mut changed = Instant::now();
    let mut generation = owner.tenure.generation();
    loop {
        tokio::select! {
            biased;
            () = owner.stopping.cancelled() => return,
            renewed = renewals.changed() => if renewed.is_err() { return },
        }
        let renewal = renewals.borrow_and_update().clone();
        let now = owner.tenure.generation();
        if now != generation {
            match start_over(&owner, &renewal.view, &messages).await {
                Ok(()) => generation = now,
                Err(error) => tracing::warn!(target: RUNTIME, %error, "shards were not freed, trying again"),
            }
            changed = Instant::now();
            continue;
        }
        // A renewal that was sent before the last change here does not show it.
        if renewal.sent < changed {
            continue;
        }
        match share(&owner, renewal.view, &messages).await {
            Ok(false) => {}
            Ok(true) => changed = Instant::now(),
            Err(error) => {
                changed = Instant::now();
                tracing::warn!(target: RUNTIME, %error, "the shards could not be shared out, trying again");
            }
        }
    }
}

/// Takes in the nodes and owners that a renewal shows, and corrects this node's share; `true` if it had to change.
pub(crate) async fn share(
    owner: &Arc<Owner>,
    view: LeaseView,
    messages: &mpsc::UnboundedSender<ShardMessage>,
) -> Result<bool, outlast_storage::Error> {
    let leaving = owner.tenure.is_leaving();
    // A leaving node also gives back shards that it was just acquiring.
    let all = || Rebalance { release: view.held.iter().map(|held| held.shard).collect(), acquire: Vec::new() };
    let change = if leaving { all() } else { rebalance(&owner.id, &view) };
    let lost = lost(owner, &view);
    // Held in the store, unknown here: an `acquire` lost its answer, or a `release` failed.
    let unknown = |held: &&HeldShard| owner.tenure.epoch(held.shard).is_none() && !change.release.contains(&held.shard);
    let mut taken: Vec<HeldShard> = view.held.iter().filter(unknown).copied().collect();
    let gone = owner.neighbours.update(view);
    if !lost.is_empty() {
        tracing::warn!(target: RUNTIME, shards = lost.len(), "other nodes have taken shards of this one");
        relinquish(owner, &lost, messages).await;
    }
    if !gone.is_empty() {
        owner.dispatcher.workers_lost(&gone).await;
    }
    if !change.release.is_empty() {
        give_up(owner, &change.release, messages).await?;
    }
    if !change.acquire.is_empty() {
        taken.extend(owner.store.acquire(&owner.id, &change.acquire).await?);
    }
    if !taken.is_empty() {
        let shards: Vec<ShardId> = taken.iter().map(|held| held.shard).collect();
        crate::telemetry::metrics::shards_taken(taken.len());
        // Before the broker brings messages for these shards: an actor that finds its shard not held passes them on.
        for held in &taken {
            owner.tenure.take(held.shard, held.epoch);
        }
        if owner.broker.own(&shards, messages.clone()).await.is_err() {
            tracing::warn!(target: RUNTIME, "the broker is away; taken shards are served when it is back");
        }
        // Only after `own`: earlier nudges reached nobody here, and this reads what they announced.
        crate::shards::take_over::take_over(owner, shards);
    }
    Ok(!change.release.is_empty() || !taken.is_empty())
}

/// Shards that this node runs but no longer holds under the epoch it knows.
fn lost(owner: &Owner, view: &LeaseView) -> Vec<ShardId> {
    let held = |shard: &ShardId| {
        view.held.iter().any(|held| held.shard == *shard && owner.tenure.epoch(held.shard) == Some(held.epoch))
    };
    owner.tenure.held().into_iter().filter(|shard| !held(shard)).collect()
}

/// Gives up shards: first messages, then actors, last the lease.
async fn give_up(
    owner: &Arc<Owner>,
    shards: &[ShardId],
    messages: &mpsc::UnboundedSender<ShardMessage>,
) -> Result<(), outlast_storage::Error> {
    relinquish(owner, shards, messages).await;
    owner.store.release(&owner.id, shards).await
}

/// The store went back to an older state, in which this node holds the shards that it held then. Gives all of them back, so that
/// their epochs rise and the next owner of each, perhaps this node, reads everything.
async fn start_over(
    owner: &Arc<Owner>,
    view: &LeaseView,
    messages: &mpsc::UnboundedSender<ShardMessage>,
) -> Result<(), outlast_storage::Error> {
    let mut shards: Vec<ShardId> = view.held.iter().map(|held| held.shard).chain(owner.tenure.held()).collect();
    shards.sort_unstable();
    shards.dedup();
    give_up(owner, &shards, messages).await?;
    owner.dispatcher.outstanding.clear();
    owner.due_queue.clear();
    Ok(())
}

/// Takes over all held shards again: the previous task may have ended between taking shards and reading what waits there.
pub(crate) async fn serve_again(owner: &Arc<Owner>, messages: &mpsc::UnboundedSender<ShardMessage>) {
    let held = owner.tenure.held();
    if held.is_empty() {
        return;
    }
    if owner.broker.own(&held, messages.clone()).await.is_err() {
        tracing::warn!(target: RUNTIME, "the broker is away; shards are served when it is back");
    }
    crate::shards::take_over::take_over(owner, held);
}

/// Gives the shards to other nodes once this node's tasks fail again and again; while no other node has code, keeps them and
/// goes on trying.
pub(crate) async fn leave_when_failing(owner: Arc<Owner>, messages: mpsc::UnboundedSender<ShardMessage>) {
    tokio::select! {
        biased;
        () = owner.stopping.cancelled() => return,
        () = owner.supervisor.given_up() => {}
    }
    while !owner.stopping.is_cancelled() {
        if owner.neighbours.have_code() && !owner.tenure.is_leaving() {
            tracing::error!(target: RUNTIME, "tasks of this node fail again and again, its shards go to other nodes");
            hand_over(&owner, &messages).await;
        }
        tokio::select! {
            biased;
            () = owner.stopping.cancelled() => {}
            () = tokio::time::sleep(LOOK_FOR_OTHERS_EVERY) => {}
        }
    }
}

/// Before leaving: if other nodes have code, they take the shards; activities still running here report to them.
pub(crate) async fn hand_over(owner: &Arc<Owner>, messages: &mpsc::UnboundedSender<ShardMessage>) {
    if !owner.neighbours.have_code() {
        return;
    }
    // First, so that a `share` meanwhile takes no shards back; one under way may, and the next one releases those.
    owner.tenure.begin_to_leave();
    let done = async {
        // A node without code has no share.
        crate::node::presence::announce(owner, NodeInfo { id: owner.id.clone(), handlers: Vec::new(), worker: None })
            .await?;
        give_up(owner, &owner.tenure.held(), messages).await
    };
    if let Err(error) = done.await {
        tracing::warn!(target: RUNTIME, %error, "shards were not handed over; others take them when the lease has ended");
    }
}

async fn relinquish(owner: &Arc<Owner>, shards: &[ShardId], messages: &mpsc::UnboundedSender<ShardMessage>) {
    owner.broker.disown(shards, messages).await;
    for shard in shards {
        owner.tenure.drop_shard(*shard);
    }
    owner.dispatcher.outstanding.forget(shards);
    owner.problems.forget_instances();
    owner.warm.passivate_unused();
}
