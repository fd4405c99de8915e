//! Sharing the shards out among the nodes that live.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use outlast_broker::ShardMail;
use outlast_core::{NodeId, ShardId};
use outlast_storage::{LeaseView, NodeInfo};
use tokio::sync::mpsc;

use crate::node::Node;
use crate::observability::RUNTIME;

/// Longest time between two renewals; a lease is renewed three times in its life.
const RENEW_EVERY_MAX: Duration = Duration::from_millis(500);
/// Between two renewals of a lease that cannot end: it lies in memory, and looking is how others' leaving is seen.
const LOOK_EVERY: Duration = Duration::from_millis(50);

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

/// Renews the node's lease and keeps its share of the shards until the node stops.
pub(crate) async fn keep_share(node: Arc<Node>, mail: mpsc::UnboundedSender<ShardMail>) {
    loop {
        let pause = match share_once(&node, &mail).await {
            Ok(Duration::MAX) => LOOK_EVERY,
            Ok(lease) => (lease / 3).min(RENEW_EVERY_MAX),
            Err(error) => {
                tracing::warn!(target: RUNTIME, %error, "the lease could not be renewed, trying again");
                Duration::from_millis(200)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node.stopping.cancelled() => return,
        }
    }
}

/// One renewal; returns how long the lease lasts.
pub(crate) async fn share_once(
    node: &Arc<Node>,
    mail: &mpsc::UnboundedSender<ShardMail>,
) -> Result<Duration, outlast_storage::Error> {
    let sent = Instant::now();
    let view = node.store.renew(&node.id).await?;
    let lease = view.lease;
    node.renewed(sent, lease);
    let change = if node.leaving.load(Ordering::Relaxed) { Rebalance::default() } else { rebalance(&node.id, &view) };
    let lost = lost(node, &view);
    let gone = node.see(view);
    if !lost.is_empty() {
        tracing::warn!(target: RUNTIME, shards = lost.len(), "other nodes have taken shards of this one");
        put_down(node, &lost, mail).await;
    }
    if !gone.is_empty() {
        node.bury(&gone).await;
    }
    if !change.release.is_empty() {
        give_up(node, &change.release, mail).await?;
    }
    if !change.acquire.is_empty() {
        let acquired = node.store.acquire(&node.id, &change.acquire).await?;
        let shards: Vec<ShardId> = acquired.iter().map(|held| held.shard).collect();
        crate::meter::shards_taken(acquired.len());
        for held in &acquired {
            node.hold(held.shard, held.epoch);
        }
        if node.broker.own(&shards, mail.clone()).await.is_err() {
            tracing::warn!(target: RUNTIME, "the broker is away; taken shards are served when it is back");
        }
        tokio::spawn(crate::owner::take_over(Arc::clone(node), shards));
    }
    Ok(lease)
}

/// Shards that this node runs and does not hold any more by the epoch it knows.
fn lost(node: &Node, view: &LeaseView) -> Vec<ShardId> {
    let held = |shard: &ShardId| {
        view.held.iter().any(|held| held.shard == *shard && node.epoch(held.shard) == Some(held.epoch))
    };
    node.held().into_iter().filter(|shard| !held(shard)).collect()
}

/// Lets go of shards: no mail, no actors, then no lease.
async fn give_up(
    node: &Arc<Node>,
    shards: &[ShardId],
    mail: &mpsc::UnboundedSender<ShardMail>,
) -> Result<(), outlast_storage::Error> {
    put_down(node, shards, mail).await;
    node.store.release(&node.id, shards).await
}

/// Before leaving: if others have code, they take the shards, and whatever still runs here is reported to them.
pub(crate) async fn hand_over(node: &Arc<Node>, mail: &mpsc::UnboundedSender<ShardMail>) {
    if !node.others_have_code() {
        return;
    }
    node.leaving.store(true, Ordering::Relaxed);
    let done = async {
        // A node without code has no share.
        node.store.join(NodeInfo { id: node.id.clone(), handlers: Vec::new(), worker: None }).await?;
        give_up(node, &node.held(), mail).await
    };
    if let Err(error) = done.await {
        tracing::warn!(target: RUNTIME, %error, "shards were not handed over; others take them when the lease has ended");
    }
}

async fn put_down(node: &Arc<Node>, shards: &[ShardId], mail: &mpsc::UnboundedSender<ShardMail>) {
    node.broker.disown(shards, mail).await;
    for shard in shards {
        node.let_go(*shard);
    }
    node.outstanding.forget(shards);
    // Actors do not know their shard before they are hydrated, so all go; the ones that stay here come back warm.
    node.passivate_all();
}
