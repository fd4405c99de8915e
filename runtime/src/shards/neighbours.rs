//! The live nodes, their code and their shards, as of the last renewal. This view may be out of date: a node that is asked by
//! mistake says so.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use outlast_core::{NodeId, ShardId, WorkerId};
use outlast_storage::{LeaseView, WorkerInfo};

/// The nodes of the cluster, as one of them sees it.
pub(crate) struct Neighbours {
    me: NodeId,
    view: RwLock<Option<LeaseView>>,
}

impl Neighbours {
    pub(crate) fn new(me: NodeId) -> Self {
        Self { me, view: RwLock::default() }
    }

    /// Takes in a new view; returns the workers that have disappeared since the last one.
    pub(crate) fn update(&self, view: LeaseView) -> Vec<WorkerId> {
        let mut seen = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let before = seen.as_ref().map_or(&[][..], |seen| &seen.nodes[..]);
        let gone = before.iter().filter(|node| view.nodes.iter().all(|other| other.id != node.id));
        // A worker has the id of its node.
        let gone = gone.map(|node| WorkerId::new(node.id.as_str())).collect();
        *seen = Some(view);
        gone
    }

    /// Who holds a shard.
    pub(crate) fn holder(&self, shard: ShardId) -> Option<NodeId> {
        self.read().as_ref()?.owners.get(usize::from(shard.0)).cloned().flatten()
    }

    /// What the workers of all live nodes run.
    pub(crate) fn workers(&self) -> Vec<WorkerInfo> {
        self.read().iter().flat_map(|view| &view.nodes).filter_map(|node| node.worker.clone()).collect()
    }

    /// Whether another node that is alive runs orchestrations.
    pub(crate) fn have_code(&self) -> bool {
        self.read().iter().flat_map(|view| &view.nodes).any(|node| node.id != self.me && !node.handlers.is_empty())
    }

    /// A shard whose owner has the code that this node lacks.
    pub(crate) fn shard_that_serves(&self, name: &str, version: Option<&str>) -> Option<ShardId> {
        let view = self.read();
        let view = view.as_ref()?;
        let serves = |id: &NodeId| {
            let node = view.nodes.iter().find(|node| node.id == *id && node.id != self.me);
            node.is_some_and(|node| {
                node.handlers.iter().any(|(n, v)| n == name && version.is_none_or(|version| v == version))
            })
        };
        let index = view.owners.iter().position(|owner| owner.as_ref().is_some_and(serves))?;
        u16::try_from(index).ok().map(ShardId)
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<LeaseView>> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }
}
