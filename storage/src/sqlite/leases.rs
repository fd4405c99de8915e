//! Ownership in the embedded mode: one process has the file, its runtimes share the shards out among themselves.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, TryLockError};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use outlast_core::{Epoch, NodeId, Reason, ShardId, WorkerId};
use rusqlite::{Connection, params};

use super::failure::sql_error;
use super::file::{DatabaseFile, beside};
use super::{FileId, SqliteStore, TARGET};
use crate::{Error, HeldShard, LeaseStore, LeaseView, NodeInfo, SessionClaim, Shortage};

/// How often, and how long after each other, a lock that is taken is tried again: a client that looks whether anybody runs the
/// database holds it for a moment.
const LOOKED_AT_TRIES: usize = 3;
const LOOKED_AT_PAUSE: Duration = Duration::from_millis(2);

/// Who is there and who holds what, in this process.
pub(super) struct Leases {
    file: Option<Arc<DatabaseFile>>,
    members: Mutex<Members>,
}

#[derive(Default)]
struct Members {
    /// Held while any runtime of this process is joined.
    lock: Option<RunLock>,
    nodes: BTreeMap<NodeId, NodeInfo>,
    owners: Vec<Option<(NodeId, Epoch)>>,
    sessions: HashMap<String, (WorkerId, Instant)>,
    /// What the nodes of this process have reported: listed also while the file cannot be written.
    shortages: BTreeMap<NodeId, Vec<Shortage>>,
}

/// Which shards nobody runs, as far as this process can tell.
pub(super) enum Ownerless {
    /// Another process runs the file, and looks after that itself.
    RunsElsewhere,
    /// No process runs orchestrations.
    All,
    /// These.
    Some(Vec<ShardId>),
}

/// Keeps a second process from running the same database: a locked file beside it, freed by the kernel when the process dies.
/// Every process has the database open under the same name, so there is one lock for all.
struct RunLock {
    path: PathBuf,
    id: Option<FileId>,
    _locked: File,
}

impl RunLock {
    fn take(database: &DatabaseFile) -> Result<Self, Error> {
        let path = beside(&database.path, ".runtime-lock");
        let failed = |error: io::Error| {
            Error::unusable(Reason::because(format!("lock file {}: {error}", path.display()), error))
        };
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        let mut locked = file.try_lock();
        for _ in 0..LOOKED_AT_TRIES {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            // It may only be looked at, which takes no time.
            std::thread::sleep(LOOKED_AT_PAUSE);
            locked = file.try_lock();
        }
        match locked {
            Ok(()) => Ok(Self { id: FileId::of(&path), path, _locked: file }),
            Err(TryLockError::WouldBlock) => Err(Error::unusable(format!(
                "another process runs orchestrations on {}: stop it first, or use a client only, or move to the cluster provider",
                database.path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Whether no process holds it. The lock is shared, and for a moment: other clients that look are not in the way.
    fn is_free(database: &DatabaseFile) -> bool {
        match File::open(beside(&database.path, ".runtime-lock")) {
            Ok(file) => file.try_lock_shared().is_ok(),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        }
    }

    /// Whether others that look for the lock find this one.
    fn is_in_place(&self) -> bool {
        self.id.is_some() && FileId::of(&self.path) == self.id
    }
}

impl Leases {
    pub(super) fn new(file: Option<Arc<DatabaseFile>>, shards: u16) -> Self {
        let members = Members { owners: vec![None; usize::from(shards)], ..Members::default() };
        Self { file, members: Mutex::new(members) }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that this process is still the only one that runs the database: somebody may have removed the lock file or
    /// moved the database. What was held under a lost lock is no longer held: another process may
    /// have run it.
    fn hold_lock(&self, members: &mut Members) -> Result<(), Error> {
        let Some(file) = &self.file else { return Ok(()) };
        let in_place = file.is_in_place();
        if in_place && members.lock.as_ref().is_some_and(RunLock::is_in_place) {
            return Ok(());
        }
        members.owners.fill(None);
        let had = members.lock.take().is_some();
        if !in_place {
            return Err(file.lost());
        }
        members.lock = Some(RunLock::take(file)?);
        if had {
            tracing::error!(target: TARGET, database = %file.path.display(), "the lock file was removed; it is taken again");
        }
        Ok(())
    }

    /// Which shards stand still. The lock tells whether another process runs the file: only its holder has nodes.
    pub(super) fn ownerless(&self) -> Ownerless {
        let members = self.lock();
        if members.nodes.is_empty() {
            let free = self.file.as_ref().is_none_or(|file| RunLock::is_free(file));
            return if free { Ownerless::All } else { Ownerless::RunsElsewhere };
        }
        if members.nodes.values().all(|node| node.handlers.is_empty()) {
            return Ownerless::All;
        }
        let free = members.owners.iter().enumerate().filter(|(_, owner)| owner.is_none());
        Ownerless::Some(free.map(|(index, _)| shard(index)).collect())
    }

    /// What the nodes of this process have reported; `None` when it has none.
    pub(super) fn reported(&self) -> Option<Vec<Shortage>> {
        let members = self.lock();
        (!members.nodes.is_empty()).then(|| members.shortages.values().flatten().cloned().collect())
    }

    /// The store did not take a commit by this epoch. When it is the one that is known here, another process has raised it, and
    /// the shard has to be taken anew.
    pub(super) fn fenced(&self, shard: ShardId, epoch: Epoch) {
        let mut members = self.lock();
        let Some(owner) = members.owners.get_mut(usize::from(shard.0)) else { return };
        if owner.as_ref().is_some_and(|(_, known)| *known == epoch) {
            *owner = None;
            tracing::error!(target: TARGET, shard = shard.0, "another process has run this database; taking the shard again");
        }
    }
}

impl Members {
    /// A worker has the id of its node.
    fn is_there(&self, worker: &WorkerId) -> bool {
        self.nodes.contains_key(&NodeId::new(worker.as_str()))
    }

    /// Forgets a node, with all that it holds.
    fn forget(&mut self, node: &NodeId) {
        for owner in &mut self.owners {
            if owner.as_ref().is_some_and(|(id, _)| id == node) {
                *owner = None;
            }
        }
        self.nodes.remove(node);
        self.sessions.retain(|_, (worker, _)| worker.as_str() != node.as_str());
        if self.nodes.is_empty() {
            self.lock = None;
        }
    }
}

#[async_trait]
impl LeaseStore for SqliteStore {
    async fn join(&self, node: NodeInfo) -> Result<(), Error> {
        let (first, id) = {
            let mut members = self.leases.lock();
            let first = members.nodes.is_empty();
            self.leases.hold_lock(&mut members)?;
            let id = node.id.clone();
            members.nodes.insert(node.id.clone(), node);
            (first, id)
        };
        if first {
            // Whoever reported them died without taking them back.
            let clear = |db: &Connection, _| db.execute("DELETE FROM shortages", []).map(drop).map_err(sql_error);
            self.connections.write(clear).await.inspect_err(|_| self.leases.lock().forget(&id))?;
        }
        Ok(())
    }

    async fn renew(&self, node: &NodeId) -> Result<LeaseView, Error> {
        let mut members = self.leases.lock();
        self.leases.hold_lock(&mut members)?;
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
            // A file is not replaced under the process that has it open.
            set_back: None,
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
        // Meanwhile the node may have left, or the lock been lost: then the shards are not its own.
        for shard in &free {
            let owner = &mut members.owners[usize::from(shard.0)];
            if owner.as_ref() == Some(&(node.clone(), Epoch(0))) {
                let mine = raised.iter().flatten().find(|held| held.shard == *shard);
                *owner = mine.map(|held| (node.clone(), held.epoch));
            }
        }
        let is_mine = |held: &HeldShard| members.owners[usize::from(held.shard.0)] == Some((node.clone(), held.epoch));
        raised.map(|held| held.into_iter().filter(is_mine).collect())
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
        // First, and without a wait: whatever becomes of the rest, no shard stays with a node that is gone.
        self.leases.lock().forget(node);
        let forgotten = self.report_shortages(node, Vec::new()).await;
        self.leases.lock().shortages.remove(node);
        forgotten
    }

    async fn report_shortages(&self, node: &NodeId, shortages: Vec<Shortage>) -> Result<(), Error> {
        self.leases.lock().shortages.insert(node.clone(), shortages.clone());
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

    async fn release_sessions(&self, worker: &WorkerId, only: Option<&str>) -> Result<(), Error> {
        let is_kept = |name: &String, owner: &WorkerId| owner != worker || only.is_some_and(|only| name != only);
        self.leases.lock().sessions.retain(|name, (owner, _)| is_kept(name, owner));
        Ok(())
    }

    fn shards(&self) -> u16 {
        self.shards
    }
}

fn shard(index: usize) -> ShardId {
    ShardId(u16::try_from(index).expect("there are at most u16::MAX shards"))
}
