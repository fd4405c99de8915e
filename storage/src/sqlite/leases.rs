//! Ownership in the embedded mode: one process has the file, its runtimes share the shards out among themselves.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use outlast_core::{Epoch, NodeId, ShardId, WorkerId};
use rusqlite::params;

use super::SqliteStore;
use super::connection::sql_error;
use crate::{Error, HeldShard, LeaseStore, LeaseView, NodeInfo, SessionClaim, Shortage};

/// Who is there and who holds what, in this process.
pub(super) struct Leases {
    path: Option<PathBuf>,
    members: Mutex<Members>,
}

#[derive(Default)]
struct Members {
    /// Held while any runtime of this process is joined; the kernel frees it when the process dies.
    lock: Option<File>,
    nodes: BTreeMap<NodeId, NodeInfo>,
    owners: Vec<Option<(NodeId, Epoch)>>,
    sessions: HashMap<String, (WorkerId, Instant)>,
}

impl Members {
    /// A worker has the id of its node.
    fn is_there(&self, worker: &WorkerId) -> bool {
        self.nodes.contains_key(&NodeId::new(worker.as_str()))
    }
}

impl Leases {
    pub(super) fn new(path: Option<PathBuf>, shards: u16) -> Self {
        let members = Members { owners: vec![None; usize::from(shards)], ..Members::default() };
        Self { path, members: Mutex::new(members) }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file lock by which no second process runs the same database.
    fn lock_file(&self) -> Result<Option<File>, Error> {
        let Some(path) = &self.path else { return Ok(None) };
        let mut name = path.as_os_str().to_owned();
        name.push(".runtime-lock");
        let name = PathBuf::from(name);
        let failed = |error: &dyn std::fmt::Display| Error::Unusable(format!("lock file {}: {error}", name.display()));
        let file =
            File::options().create(true).truncate(false).write(true).open(&name).map_err(|error| failed(&error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Err(Error::Unusable(format!(
                "another process runs orchestrations on {}: stop it first, or use a client only, or move to the cluster provider",
                path.display()
            ))),
            Err(std::fs::TryLockError::Error(error)) => Err(failed(&error)),
        }
    }
}

#[async_trait]
impl LeaseStore for SqliteStore {
    async fn join(&self, node: NodeInfo) -> Result<(), Error> {
        let first = {
            let mut members = self.leases.lock();
            let first = members.nodes.is_empty();
            if first && members.lock.is_none() {
                members.lock = self.leases.lock_file()?;
            }
            members.nodes.insert(node.id.clone(), node);
            first
        };
        if first {
            // Whoever reported them died without taking them back.
            self.connections
                .write(|db, _| db.execute("DELETE FROM shortages", []).map(drop).map_err(sql_error))
                .await?;
        }
        Ok(())
    }

    async fn renew(&self, node: &NodeId) -> Result<LeaseView, Error> {
        let members = self.leases.lock();
        let owner = |owner: &Option<(NodeId, Epoch)>| owner.as_ref().map(|(id, _)| id.clone());
        let held = members.owners.iter().enumerate().filter_map(|(index, owner)| match owner {
            Some((id, epoch)) if id == node => Some(HeldShard { shard: shard(index), epoch: *epoch }),
            _ => None,
        });
        Ok(LeaseView {
            lease: Duration::MAX,
            nodes: members.nodes.values().cloned().collect(),
            owners: members.owners.iter().map(owner).collect(),
            held: held.collect(),
        })
    }

    async fn acquire(&self, node: &NodeId, shards: &[ShardId]) -> Result<Vec<HeldShard>, Error> {
        let free: Vec<ShardId> = {
            let mut members = self.leases.lock();
            let is_free = |shard: &&ShardId| members.owners.get(usize::from(shard.0)).is_some_and(Option::is_none);
            let free: Vec<ShardId> = shards.iter().filter(is_free).copied().collect();
            for shard in &free {
                // Reserved under the old epoch, which fences nobody in: it is raised before this call returns.
                members.owners[usize::from(shard.0)] = Some((node.clone(), Epoch(0)));
            }
            free
        };
        let wanted = free.clone();
        let raised = self.connections.write(move |db, _| {
            let sql = "UPDATE shards SET epoch = epoch + 1 WHERE id = ?1 RETURNING epoch";
            let mut raise = db.prepare_cached(sql).map_err(sql_error)?;
            let raise_one = |shard: ShardId| {
                let epoch: i64 = raise.query_row(params![shard.0], |row| row.get(0)).map_err(sql_error)?;
                Ok(HeldShard { shard, epoch: Epoch(epoch.cast_unsigned()) })
            };
            wanted.iter().copied().map(raise_one).collect::<Result<Vec<_>, Error>>()
        });
        let raised = raised.await;
        let mut members = self.leases.lock();
        match &raised {
            Ok(held) => held.iter().for_each(|held| {
                members.owners[usize::from(held.shard.0)] = Some((node.clone(), held.epoch));
            }),
            Err(_) => free.iter().for_each(|shard| members.owners[usize::from(shard.0)] = None),
        }
        raised
    }

    async fn release(&self, node: &NodeId, shards: &[ShardId]) -> Result<(), Error> {
        let mut members = self.leases.lock();
        for shard in shards {
            if let Some(owner) = members.owners.get_mut(usize::from(shard.0))
                && owner.as_ref().is_some_and(|(id, _)| id == node)
            {
                *owner = None;
            }
        }
        Ok(())
    }

    async fn leave(&self, node: &NodeId) -> Result<(), Error> {
        let all: Vec<ShardId> = self.all_shards().collect();
        self.release(node, &all).await?;
        self.report_shortages(node, Vec::new()).await?;
        let mut members = self.leases.lock();
        members.nodes.remove(node);
        members.sessions.retain(|_, (worker, _)| worker.as_str() != node.as_str());
        if members.nodes.is_empty() {
            members.lock = None;
        }
        Ok(())
    }

    async fn report_shortages(&self, node: &NodeId, shortages: Vec<Shortage>) -> Result<(), Error> {
        let node = node.as_str().to_owned();
        self.connections
            .write(move |db, _| {
                db.prepare_cached("DELETE FROM shortages WHERE node = ?1")
                    .and_then(|mut statement| statement.execute([&node]))
                    .map_err(sql_error)?;
                let sql = "INSERT INTO shortages (node, reason, instance, orchestration, waiting, since) \
                           VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
                let mut insert = db.prepare_cached(sql).map_err(sql_error)?;
                for shortage in &shortages {
                    let (instance, since) = (shortage.instance.as_str(), shortage.since.0.cast_signed());
                    let row = params![node, shortage.reason, instance, shortage.orchestration, shortage.waiting, since];
                    insert.execute(row).map_err(sql_error)?;
                }
                Ok(())
            })
            .await
    }

    async fn claim_session(&self, session: &str, worker: &WorkerId, idle: Duration) -> Result<SessionClaim, Error> {
        let mut members = self.leases.lock();
        match members.sessions.get(session) {
            Some((owner, used)) if owner != worker && used.elapsed() < idle && members.is_there(owner) => {
                Ok(SessionClaim::Other(owner.clone()))
            }
            _ => {
                members.sessions.insert(session.to_owned(), (worker.clone(), Instant::now()));
                Ok(SessionClaim::Mine)
            }
        }
    }

    async fn session_owners(&self, sessions: &[String]) -> Result<Vec<Option<WorkerId>>, Error> {
        let members = self.leases.lock();
        let owner = |session: &String| {
            let (worker, _) = members.sessions.get(session)?;
            members.is_there(worker).then(|| worker.clone())
        };
        Ok(sessions.iter().map(owner).collect())
    }

    async fn release_session(&self, session: &str, worker: &WorkerId) -> Result<(), Error> {
        let mut members = self.leases.lock();
        if members.sessions.get(session).is_some_and(|(owner, _)| owner == worker) {
            members.sessions.remove(session);
        }
        Ok(())
    }

    async fn release_sessions(&self, worker: &WorkerId) -> Result<(), Error> {
        self.leases.lock().sessions.retain(|_, (owner, _)| owner != worker);
        Ok(())
    }

    fn shards(&self) -> u16 {
        self.shards
    }
}

fn shard(index: usize) -> ShardId {
    ShardId(u16::try_from(index).expect("there are at most u16::MAX shards"))
}
