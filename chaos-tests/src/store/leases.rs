//! Who may run which shard: leases on the server's clock.

use std::time::Duration;

use async_trait::async_trait;
use outlast_core::{Millis, NodeId, ShardId, WorkerId};
use outlast_storage::{Error, HeldShard, LeaseStore, LeaseView, NodeInfo, SessionClaim, Shortage};
use tokio::time::Instant;

use super::SimulatedStore;
use super::tables::{Node, Session, Shard, Tables};
use crate::lock::locked;

/// For how many leases a dead node is remembered.
const FORGET_AFTER_LEASES: u32 = 12;

#[async_trait]
impl LeaseStore for SimulatedStore {
    async fn join(&self, node: NodeInfo) -> Result<(), Error> {
        locked(&self.joined).insert(node.id.clone(), node.clone());
        self.renew_node(node).await.map(drop)
    }

    async fn renew(&self, node: &NodeId) -> Result<LeaseView, Error> {
        let joined = locked(&self.joined).get(node).cloned();
        let info = joined.ok_or_else(|| Error::unusable(format!("node {node} has not joined or has left")))?;
        let mut view = self.renew_node(info).await?;
        if !self.may_judge() {
            // A node that has been away itself does not know which others are dead.
            return Ok(view.all);
        }
        view.all.nodes.retain(|other| view.live.contains(&other.id));
        for owner in &mut view.all.owners {
            *owner = owner.take().filter(|owner| view.live.contains(owner));
        }
        Ok(view.all)
    }

    async fn acquire(&self, node: &NodeId, shards: &[ShardId]) -> Result<Vec<HeldShard>, Error> {
        let (node, wanted, steals) = (node.clone(), shards.to_vec(), self.may_judge());
        let dead_for = self.server.options.lease * FORGET_AFTER_LEASES;
        self.change(move |tx| {
            let now = tx.now;
            let mut taken = Vec::new();
            for shard in wanted {
                let row = tx.tables.shards.get(usize::from(shard.0)).cloned();
                let Some(Shard { owner, epoch }) = row else { continue };
                let is_dead = |owner: &NodeId| steals && !tx.tables.is_live(owner, now);
                if owner.as_ref().is_none_or(is_dead) {
                    let epoch = epoch.next();
                    tx.tables.shards[usize::from(shard.0)] = Shard { owner: Some(node.clone()), epoch };
                    taken.push(HeldShard { shard, epoch });
                }
            }
            tx.tables.forget_dead(now, dead_for);
            Ok(taken)
        })
        .await
    }

    async fn release(&self, node: &NodeId, shards: &[ShardId]) -> Result<(), Error> {
        let (node, given) = (node.clone(), shards.to_vec());
        self.change(move |tx| {
            let held = |shard: &&mut Shard| shard.owner.as_ref() == Some(&node);
            for shard in given {
                if let Some(row) = tx.tables.shards.get_mut(usize::from(shard.0)).filter(held) {
                    row.owner = None;
                }
            }
            Ok(())
        })
        .await
    }

    async fn leave(&self, node: &NodeId) -> Result<(), Error> {
        locked(&self.joined).remove(node);
        let node = node.clone();
        self.change(move |tx| {
            for shard in tx.tables.shards.iter_mut().filter(|shard| shard.owner.as_ref() == Some(&node)) {
                shard.owner = None;
            }
            tx.tables.nodes.remove(&node);
            tx.tables.shortages.remove(&node);
            tx.tables.sessions.retain(|_, session| session.worker.as_str() != node.as_str());
            Ok(())
        })
        .await
    }

    async fn report_shortages(&self, node: &NodeId, shortages: Vec<Shortage>) -> Result<(), Error> {
        let node = node.clone();
        self.change(move |tx| {
            tx.tables.shortages.insert(node, shortages);
            Ok(())
        })
        .await
    }

    async fn claim_session(&self, session: &str, worker: &WorkerId, idle: Duration) -> Result<SessionClaim, Error> {
        let (session, worker) = (session.to_owned(), worker.clone());
        self.change(move |tx| {
            let now = tx.now;
            if let Some(Session { worker: holder, used }) = tx.tables.sessions.get(&session)
                && *holder != worker
                && used.plus(idle) >= now
                && tx.tables.is_live(&NodeId::new(holder.as_str()), now)
            {
                return Ok(SessionClaim::Other(holder.clone()));
            }
            tx.tables.sessions.insert(session, Session { worker, used: now });
            Ok(SessionClaim::Mine)
        })
        .await
    }

    async fn session_owners(&self, sessions: &[String]) -> Result<Vec<Option<WorkerId>>, Error> {
        self.read(|tables, now| {
            let owner = |session: &String| {
                let worker = &tables.sessions.get(session)?.worker;
                tables.is_live(&NodeId::new(worker.as_str()), now).then(|| worker.clone())
            };
            sessions.iter().map(owner).collect()
        })
        .await
    }

    async fn release_sessions(&self, worker: &WorkerId, only: Option<&str>) -> Result<(), Error> {
        let (worker, only) = (worker.clone(), only.map(str::to_owned));
        self.change(move |tx| {
            let is_kept =
                |name: &String, holder: &WorkerId| *holder != worker || only.as_ref().is_some_and(|only| name != only);
            tx.tables.sessions.retain(|name, held| is_kept(name, &held.worker));
            Ok(())
        })
        .await
    }

    fn shards(&self) -> u16 {
        self.server.options.shards
    }
}

/// What a renewal has seen: all nodes, and which of them are live.
struct Seen {
    all: LeaseView,
    live: Vec<NodeId>,
}

impl SimulatedStore {
    async fn renew_node(&self, info: NodeInfo) -> Result<Seen, Error> {
        let lease = self.server.options.lease;
        let seen = self.change(move |tx| {
            let (id, now) = (info.id.clone(), tx.now);
            tx.tables.nodes.insert(id.clone(), Node { info, lease_until: now.plus(lease) });
            let held = tx.tables.shards.iter().enumerate().filter(|(_, shard)| shard.owner.as_ref() == Some(&id));
            let held = held.map(|(index, shard)| HeldShard { shard: shard_id(index), epoch: shard.epoch }).collect();
            let live = tx.tables.nodes.iter().filter(|(_, node)| node.lease_until >= now);
            let live = live.map(|(id, _)| id.clone()).collect();
            let all = LeaseView {
                lease,
                nodes: tx.tables.nodes.values().map(|node| node.info.clone()).collect(),
                owners: tx.tables.shards.iter().map(|shard| shard.owner.clone()).collect(),
                held,
                set_back: None,
            };
            Ok(Seen { all, live })
        });
        let seen = seen.await;
        let mut since = locked(&self.renewed_since);
        match &seen {
            Ok(_) => drop(since.get_or_insert_with(Instant::now)),
            Err(_) => *since = None,
        }
        seen
    }

    /// Whether this handle was connected for a whole lease: only then others surely had time to renew theirs.
    fn may_judge(&self) -> bool {
        locked(&self.renewed_since).is_some_and(|since| since.elapsed() >= self.server.options.lease)
    }
}

impl Tables {
    fn forget_dead(&mut self, now: Millis, dead_for: Duration) {
        let is_long_dead = |node: &Node| node.lease_until.plus(dead_for) < now;
        let dead: Vec<NodeId> =
            self.nodes.iter().filter(|(_, node)| is_long_dead(node)).map(|(id, _)| id.clone()).collect();
        for id in dead {
            self.sessions.retain(|_, session| session.worker.as_str() != id.as_str());
            if !self.shards.iter().any(|shard| shard.owner.as_ref() == Some(&id)) {
                self.nodes.remove(&id);
                self.shortages.remove(&id);
            }
        }
    }
}

fn shard_id(index: usize) -> ShardId {
    ShardId(u16::try_from(index).expect("there are at most u16::MAX shards"))
}
