//! The nodes, shards and sessions of one process, for stores that one process at a time runs.
//!
//! Everything here dies with the process, and so do the nodes that it speaks of. Epochs are durable and belong to the
//! store: it raises them while a shard is being taken.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use outlast_core::{Epoch, Millis, NodeId, ShardId, WorkerId};

use crate::{Error, HeldShard, LeaseView, NodeInfo, SessionClaim};

/// Identifies an open store, so that its nodes are forgotten when it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HomeId(pub(crate) u64);

/// Who is there, and who has what.
#[derive(Debug)]
pub(crate) struct Membership {
    members: Mutex<Members>,
}

#[derive(Debug)]
struct Members {
    nodes: BTreeMap<NodeId, Node>,
    shards: Vec<Slot>,
    sessions: HashMap<String, Session>,
    /// Held while there are nodes; keeps other processes out.
    lock: Option<File>,
}

#[derive(Debug)]
struct Node {
    info: NodeInfo,
    home: HomeId,
}

#[derive(Clone, Debug)]
enum Slot {
    Free,
    /// The store is raising the epoch.
    Taking(NodeId),
    Held(NodeId, Epoch),
}

#[derive(Debug)]
struct Session {
    worker: WorkerId,
    last_used: Millis,
}

impl Slot {
    fn owner(&self) -> Option<&NodeId> {
        match self {
            Self::Free => None,
            Self::Taking(node) | Self::Held(node, _) => Some(node),
        }
    }
}

impl Membership {
    /// Nobody there, every shard free.
    pub(crate) fn new(shards: u16) -> Self {
        let shards = vec![Slot::Free; usize::from(shards)];
        let members = Members { nodes: BTreeMap::new(), shards, sessions: HashMap::new(), lock: None };
        Self { members: Mutex::new(members) }
    }

    /// Adds a node; the first one takes the lock that keeps other processes out.
    pub(crate) fn join(
        &self,
        info: NodeInfo,
        home: HomeId,
        take_lock: impl FnOnce() -> Result<Option<File>, Error>,
    ) -> Result<(), Error> {
        let mut members = self.lock();
        if members.nodes.is_empty() {
            members.lock = take_lock()?;
        }
        members.nodes.insert(info.id.clone(), Node { info, home });
        Ok(())
    }

    /// Who holds what, as `node` sees it.
    pub(crate) fn view(&self, node: &NodeId) -> LeaseView {
        let members = self.lock();
        let held = members.shards.iter().zip(0_u16..).filter_map(|(slot, id)| match slot {
            Slot::Held(owner, epoch) if owner == node => Some(HeldShard { shard: ShardId(id), epoch: *epoch }),
            Slot::Held(..) | Slot::Taking(_) | Slot::Free => None,
        });
        LeaseView {
            lease: Duration::MAX,
            nodes: members.nodes.values().map(|node| node.info.clone()).collect(),
            owners: members.shards.iter().map(|slot| slot.owner().cloned()).collect(),
            held: held.collect(),
        }
    }

    /// Reserves those of `shards` that are free, for a node that is there.
    pub(crate) fn reserve(self: &Arc<Self>, node: &NodeId, shards: &[ShardId]) -> Reservation {
        let mut members = self.lock();
        let mut taken = Vec::new();
        if members.nodes.contains_key(node) {
            for shard in shards {
                if let Some(slot @ Slot::Free) = members.shards.get_mut(usize::from(shard.0)) {
                    *slot = Slot::Taking(node.clone());
                    taken.push(*shard);
                }
            }
        }
        Reservation { membership: Arc::clone(self), node: node.clone(), shards: taken }
    }

    /// Frees those of `shards` that the node holds, and says which they were.
    pub(crate) fn release(&self, node: &NodeId, shards: &[ShardId]) -> Vec<ShardId> {
        let mut members = self.lock();
        let mut freed = Vec::new();
        for shard in shards {
            if let Some(slot) = members.shards.get_mut(usize::from(shard.0))
                && slot.owner() == Some(node)
            {
                *slot = Slot::Free;
                freed.push(*shard);
            }
        }
        freed
    }

    /// Forgets a node, and says which shards it freed.
    pub(crate) fn leave(&self, node: &NodeId) -> Vec<ShardId> {
        self.lock().forget(node)
    }

    /// Forgets the nodes of a store that is gone.
    pub(crate) fn leave_home(&self, home: HomeId) {
        let mut members = self.lock();
        let gone: Vec<_> = members.nodes.values().filter(|node| node.home == home).map(|n| n.info.id.clone()).collect();
        for node in gone {
            members.forget(&node);
        }
    }

    /// Whether a node of this store is there.
    pub(crate) fn is_home(&self, home: HomeId) -> bool {
        self.lock().nodes.values().any(|node| node.home == home)
    }

    /// Gives the session to `worker`, unless another one used it less than `idle` before `now`.
    pub(crate) fn claim_session(&self, session: &str, worker: &WorkerId, idle: Duration, now: Millis) -> SessionClaim {
        let mut members = self.lock();
        if let Some(held) = members.sessions.get(session)
            && held.worker != *worker
            && held.last_used.plus(idle) > now
        {
            return SessionClaim::Other(held.worker.clone());
        }
        members.sessions.insert(session.to_owned(), Session { worker: worker.clone(), last_used: now });
        SessionClaim::Mine
    }

    /// Frees all sessions of a worker.
    pub(crate) fn release_sessions(&self, worker: &WorkerId) {
        self.lock().sessions.retain(|_, session| session.worker != *worker);
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Members {
    fn forget(&mut self, node: &NodeId) -> Vec<ShardId> {
        self.nodes.remove(node);
        let mut freed = Vec::new();
        for (slot, id) in self.shards.iter_mut().zip(0_u16..) {
            if slot.owner() == Some(node) {
                *slot = Slot::Free;
                freed.push(ShardId(id));
            }
        }
        if self.nodes.is_empty() {
            // Closing the file frees the lock.
            self.lock = None;
        }
        freed
    }
}

/// Shards that are being taken; dropped unconfirmed, they are free again.
#[derive(Debug)]
pub(crate) struct Reservation {
    membership: Arc<Membership>,
    node: NodeId,
    shards: Vec<ShardId>,
}

impl Reservation {
    /// What was free.
    pub(crate) fn shards(&self) -> &[ShardId] {
        &self.shards
    }

    /// The epochs are durable: the node holds them, as far as it is still there.
    pub(crate) fn confirm(self, raised: Vec<HeldShard>) -> Vec<HeldShard> {
        let mut members = self.membership.lock();
        let mut held = Vec::new();
        for shard in raised {
            if let Some(slot) = members.shards.get_mut(usize::from(shard.shard.0))
                && matches!(slot, Slot::Taking(node) if *node == self.node)
            {
                *slot = Slot::Held(self.node.clone(), shard.epoch);
                held.push(shard);
            }
        }
        drop(members);
        held
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut members = self.membership.lock();
        for shard in &self.shards {
            if let Some(slot) = members.shards.get_mut(usize::from(shard.0))
                && matches!(slot, Slot::Taking(node) if *node == self.node)
            {
                *slot = Slot::Free;
            }
        }
    }
}
