//! Who may run which shard: leases on the database's clock.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use outlast_core::{Epoch, Millis, NodeId, ShardId, WorkerId};

use super::PostgresStore;
use super::node_row::{decode, encode};
use super::pool::Pool;
use super::set_back::Told;
use super::turns::numbers;
use crate::{Error, HeldShard, LeaseStore, LeaseView, NodeInfo, SessionClaim, Shortage};

/// What `renew_lease` answers.
struct Renewed {
    node_ids: Vec<String>,
    node_handler_lists: Vec<String>,
    alive: Vec<bool>,
    owners: Vec<Option<String>>,
    epochs: Vec<i64>,
}

#[async_trait]
impl LeaseStore for PostgresStore {
    async fn join(&self, node: NodeInfo) -> Result<(), Error> {
        let handlers = encode(&node);
        self.note_joined(&node.id, &handlers);
        self.renew_node(&self.pools.general, &node.id, handlers).await.map(drop)
    }

    async fn renew(&self, node: &NodeId) -> Result<LeaseView, Error> {
        let handlers = {
            let joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
            joined.iter().find(|other| other.id == *node).map(|other| other.handlers.clone())
        };
        let handlers = handlers.ok_or_else(|| Error::unusable(format!("node {node} has not joined or has left")))?;
        let renewed = self.renew_node(&self.pools.leases, node, handlers).await?;
        let judge = self.may_judge();
        let live = |(index, _): &(usize, &String)| renewed.alive.get(*index).copied().unwrap_or(false) || !judge;
        let live: HashSet<&String> = renewed.node_ids.iter().enumerate().filter(live).map(|(_, id)| id).collect();
        let held = |(index, owner): (usize, &Option<String>)| {
            let mine = owner.as_deref() == Some(node.as_str());
            mine.then(|| HeldShard { shard: shard(index), epoch: Epoch(renewed.epochs[index].cast_unsigned()) })
        };
        let owner = |owner: &Option<String>| owner.as_ref().filter(|owner| live.contains(owner)).map(NodeId::new);
        let nodes = renewed.node_ids.iter().zip(&renewed.node_handler_lists).filter(|(id, _)| live.contains(id));
        Ok(LeaseView {
            lease: self.lease,
            nodes: nodes.map(|(id, serves)| decode(NodeId::new(id), serves)).collect(),
            owners: renewed.owners.iter().map(owner).collect(),
            held: renewed.owners.iter().enumerate().filter_map(held).collect(),
            set_back: self.take_set_back(node),
        })
    }

    async fn acquire(&self, node: &NodeId, shards: &[ShardId]) -> Result<Vec<HeldShard>, Error> {
        let (node, wanted, steal) = (node.as_str().to_owned(), numbers(shards), self.may_judge());
        let dead_for = i64::try_from((self.lease * super::FORGET_AFTER_LEASES).as_millis()).unwrap_or(i64::MAX);
        let taken: Vec<(i16, i64)> = self
            .pools
            .general
            .run(|db| {
                Box::pin(async move {
                    let query = sqlx::query_as("SELECT shard, new_epoch FROM acquire_shards($1, $2, $3)");
                    let taken = query.bind(node).bind(wanted).bind(steal).fetch_all(&mut **db).await?;
                    sqlx::query("SELECT forget_dead_nodes($1)").bind(dead_for).execute(&mut **db).await?;
                    Ok(taken)
                })
            })
            .await?;
        let held = |(shard, epoch): (i16, i64)| HeldShard {
            shard: ShardId(shard.cast_unsigned()),
            epoch: Epoch(epoch.cast_unsigned()),
        };
        Ok(taken.into_iter().map(held).collect())
    }

    async fn release(&self, node: &NodeId, shards: &[ShardId]) -> Result<(), Error> {
        let (node, given) = (node.as_str().to_owned(), numbers(shards));
        self.pools.general.execute(sqlx::query("SELECT release_shards($1, $2)").bind(node).bind(given)).await
    }

    async fn leave(&self, node: &NodeId) -> Result<(), Error> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| other.id != *node);
        let node = node.as_str().to_owned();
        self.pools.general.execute(sqlx::query("SELECT leave($1)").bind(node)).await
    }

    async fn report_shortages(&self, node: &NodeId, shortages: Vec<Shortage>) -> Result<(), Error> {
        let node = node.as_str().to_owned();
        let query = sqlx::query("SELECT report_shortages($1, $2, $3, $4, $5, $6)")
            .bind(node)
            .bind(shortages.iter().map(|s| s.reason.clone()).collect::<Vec<_>>())
            .bind(shortages.iter().map(|s| s.instance.as_str().to_owned()).collect::<Vec<_>>())
            .bind(shortages.iter().map(|s| s.orchestration.clone()).collect::<Vec<_>>())
            .bind(shortages.iter().map(|s| s.waiting.cast_signed()).collect::<Vec<_>>())
            .bind(shortages.iter().map(|s| s.since.0.cast_signed()).collect::<Vec<_>>());
        self.pools.general.execute(query).await
    }

    async fn claim_session(&self, session: &str, worker: &WorkerId, idle: Duration) -> Result<SessionClaim, Error> {
        let (session, claimant) = (session.to_owned(), worker.as_str().to_owned());
        let idle = i64::try_from(idle.as_millis()).unwrap_or(i64::MAX >> 1);
        let holder: String = self
            .pools
            .general
            .run(|db| {
                Box::pin(async move {
                    let query = sqlx::query_scalar("SELECT claim_session($1, $2, $3)").bind(session).bind(claimant);
                    Ok(query.bind(idle).fetch_one(&mut **db).await?)
                })
            })
            .await?;
        if holder == worker.as_str() {
            return Ok(SessionClaim::Mine);
        }
        Ok(SessionClaim::Other(WorkerId::from(holder)))
    }

    async fn session_owners(&self, sessions: &[String]) -> Result<Vec<Option<WorkerId>>, Error> {
        let sql = "SELECT worker.id FROM unnest($1::text[]) WITH ORDINALITY AS asked(session, n) \
                   LEFT JOIN sessions s ON s.session = asked.session \
                   LEFT JOIN nodes worker ON worker.id = s.worker AND worker.lease_until >= now_ms() ORDER BY asked.n";
        let sessions = sessions.to_vec();
        let owners: Vec<Option<String>> = self
            .pools
            .general
            .run(|db| Box::pin(async move { Ok(sqlx::query_scalar(sql).bind(sessions).fetch_all(&mut **db).await?) }))
            .await?;
        Ok(owners.into_iter().map(|owner| owner.map(WorkerId::from)).collect())
    }

    async fn release_sessions(&self, worker: &WorkerId, only: Option<&str>) -> Result<(), Error> {
        let sql = "DELETE FROM sessions WHERE worker = $1 AND ($2::text IS NULL OR session = $2)";
        let query = sqlx::query(sql).bind(worker.as_str().to_owned()).bind(only.map(str::to_owned));
        self.pools.general.execute(query).await
    }

    fn shards(&self) -> u16 {
        self.shards
    }
}

impl PostgresStore {
    async fn renew_node(&self, pool: &Pool, node: &NodeId, handlers: String) -> Result<Renewed, Error> {
        let sql = "SELECT now, node_ids, node_handler_lists, alive, owners, epochs, was, timeline FROM renew_lease($1, $2, $3)";
        let (told, name) = (self.told(node), node.as_str().to_owned());
        let lease = i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX);
        let renewed = pool.run(|db| {
            Box::pin(async move {
                let query = sqlx::query_as(sql).bind(name).bind(handlers).bind(lease);
                let (now, node_ids, node_handler_lists, alive, owners, epochs, was, timeline) =
                    query.fetch_one(&mut **db).await?;
                let (now, was, timeline): (i64, Option<i64>, String) = (now, was, timeline);
                Ok(((now, was, timeline), Renewed { node_ids, node_handler_lists, alive, owners, epochs }))
            })
        });
        let renewed = renewed.await;
        let mut since = self.connected_since.lock().unwrap_or_else(PoisonError::into_inner);
        match &renewed {
            Ok(((now, was, timeline), _)) => {
                since.get_or_insert_with(Instant::now);
                self.clock.heard(Millis(now.cast_unsigned()));
                let (lease_until, timeline) = (now.saturating_add(lease), timeline.clone());
                self.note_told(node, told, *was, Told { lease_until, timeline, heard: Instant::now() });
            }
            Err(_) => *since = None,
        }
        renewed.map(|(_, renewed)| renewed)
    }

    /// Only who has been connected for a whole lease knows that others had the time to renew theirs.
    fn may_judge(&self) -> bool {
        let since = self.connected_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() >= self.lease)
    }
}

fn shard(index: usize) -> ShardId {
    ShardId(u16::try_from(index).expect("there are at most u16::MAX shards"))
}
