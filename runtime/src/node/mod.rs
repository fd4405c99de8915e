//! What all parts of a node share: the provider, the code, the shards it holds and its warm instances.

pub(crate) mod dedicated_thread;
pub(crate) mod presence;
pub(crate) mod readiness;
pub(crate) mod shutdown;
pub(crate) mod supervision;
pub(crate) mod tasks;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use outlast_broker::Broker;
use outlast_core::{ActivityRef, Epoch, InstanceId, Limits, Millis, NodeId, OrchestrationRegistry, ShardId, WorkerId};
use outlast_storage::{LeaseView, Store, WorkerInfo};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::RuntimeOptions;
use crate::dispatch::outstanding::Outstanding;
use crate::instances::committer::Committer;
use crate::instances::due_queue::DueQueue;
use crate::instances::warm::{Skipped, WarmSet};
use crate::node::supervision::Supervisor;
use crate::problems::lasting::Troubles;
use crate::problems::notices::Notices;
use crate::telemetry::counters::Counters;

/// A node: holds shards and runs their instances.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) orchestrations: OrchestrationRegistry,
    pub(crate) options: RuntimeOptions,
    pub(crate) limits: Arc<Limits>,
    pub(crate) committer: Committer,
    /// Room for turns that are decided and not committed yet.
    pub(crate) turns: Arc<Semaphore>,
    pub(crate) due_queue: DueQueue,
    pub(crate) stopping: CancellationToken,
    /// Looks after the tasks of this node.
    pub(crate) supervisor: Arc<Supervisor>,
    /// What goes wrong and lasts.
    pub(crate) troubles: Arc<Troubles>,
    pub(crate) counters: Arc<Counters>,
    /// What nobody has registered, as far as it was logged lately.
    pub(crate) notices: Notices,
    /// Whether it has left. Held by whoever tells the store of this node, so that nothing of it arrives there after the farewell.
    pub(crate) gone: tokio::sync::Mutex<bool>,
    /// It takes no shard any more.
    pub(crate) leaving: AtomicBool,
    /// Values of other instances that are being read.
    pub(crate) reads: UnderWay,
    /// Activities without an outcome: the broker carries them and might lose them.
    pub(crate) outstanding: Outstanding,
    /// Instances that cannot be read or written, with the reason and since when.
    pub(crate) damaged: Mutex<BTreeMap<InstanceId, (String, Millis)>>,
    /// Instances whose orchestration no node has.
    stalled: Mutex<HashSet<InstanceId>>,
    /// Activities that wait for a worker that nobody is, when it was last looked.
    pub(crate) unserved: AtomicUsize,
    /// Instances whose code is being run right now, and since when.
    deciding: Mutex<HashMap<InstanceId, Instant>>,
    /// Tries of activities that no worker had registered.
    pub(crate) unregistered: Mutex<HashMap<ActivityRef, u32>>,
    shards: RwLock<HashMap<ShardId, Held>>,
    view: RwLock<Option<LeaseView>>,
    pub(crate) warm: Mutex<WarmSet>,
    pub(crate) skipped: Skipped,
    /// Until when this node may speak for its shards, by its own clock.
    lease_until: Mutex<Option<Instant>>,
    /// When the store was asked for the last renewal that succeeded.
    renewed_at: Mutex<Instant>,
    /// Rises when the store went back to an older state: what was read under another one is not trusted.
    generation: AtomicU64,
    /// Until when the lease holds by the last renewal that was answered soon.
    steady_until: Mutex<Option<Instant>>,
}

/// Counts what is under way.
#[derive(Clone, Default)]
pub(crate) struct UnderWay(Arc<()>);

impl UnderWay {
    /// Something begins; it ends when the value is dropped.
    pub(crate) fn begin(&self) -> Self {
        self.clone()
    }

    pub(crate) fn is_none(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

/// So many permits, or as many as there can be.
pub(crate) fn permits(count: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
}

/// Says that an instance's code runs.
pub(crate) struct Deciding<'a> {
    node: &'a Node,
    instance: &'a InstanceId,
}

impl Drop for Deciding<'_> {
    fn drop(&mut self) {
        self.node.lock_deciding().remove(self.instance);
    }
}

/// By what right a shard is run, and since when that is known here.
#[derive(Clone, Copy)]
struct Held {
    epoch: Epoch,
    since: Instant,
}

/// What a node is made of.
pub(crate) struct NodeParts {
    pub(crate) id: NodeId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) orchestrations: OrchestrationRegistry,
    pub(crate) options: RuntimeOptions,
}

impl Node {
    pub(crate) fn new(parts: NodeParts) -> Arc<Self> {
        let limits = Arc::new(parts.options.limits.clone());
        let stopping = CancellationToken::new();
        let supervisor = Supervisor::new(stopping.clone());
        Arc::new(Self {
            committer: Committer::start(
                (Arc::clone(&parts.store), Arc::clone(&parts.broker)),
                limits.commit_group_max,
                Arc::clone(&supervisor),
            ),
            id: parts.id,
            store: parts.store,
            broker: parts.broker,
            orchestrations: parts.orchestrations,
            options: parts.options,
            turns: permits(limits.turns_in_flight_max),
            due_queue: DueQueue::default(),
            stopping,
            supervisor,
            troubles: Arc::default(),
            counters: Arc::default(),
            notices: Notices::default(),
            gone: tokio::sync::Mutex::new(false),
            leaving: AtomicBool::new(false),
            reads: UnderWay::default(),
            outstanding: Outstanding::new(limits.dispatch_window),
            limits,
            damaged: Mutex::default(),
            stalled: Mutex::default(),
            unserved: AtomicUsize::new(0),
            deciding: Mutex::default(),
            unregistered: Mutex::default(),
            shards: RwLock::default(),
            view: RwLock::default(),
            warm: Mutex::default(),
            skipped: Skipped::default(),
            lease_until: Mutex::new(Some(Instant::now())),
            renewed_at: Mutex::new(Instant::now()),
            generation: AtomicU64::new(0),
            steady_until: Mutex::new(Some(Instant::now())),
        })
    }

    /// Which past of the store this node knows.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The store went back to an older state. From now on no turn builds on what was read before.
    pub(crate) fn begin_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// A renewal that was sent at `sent` has succeeded.
    pub(crate) fn renewed(&self, sent: Instant, lease: Duration) {
        let until = sent.checked_add(lease);
        *self.lease_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        *self.renewed_at.lock().unwrap_or_else(PoisonError::into_inner) = sent;
        if sent.elapsed() <= lease / 2 {
            *self.steady_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        }
    }

    /// Whether the lease holds and will go on holding, as far as can be told. After an outage the first answer may be to a
    /// question that was sent long before: the lease holds by it, but only for a moment.
    pub(crate) fn lease_is_steady(&self) -> bool {
        let until = *self.steady_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_none_or(|until| Instant::now() < until)
    }

    /// For how long the store has renewed nothing.
    pub(crate) fn silence(&self) -> Duration {
        self.renewed_at.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Whether nobody else can hold this node's shards. Commits are fenced by the store; answers without a commit ask here.
    pub(crate) fn lease_holds(&self) -> bool {
        let until = *self.lease_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_none_or(|until| Instant::now() < until)
    }

    /// The epoch by which this node holds a shard.
    pub(crate) fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).get(&shard).map(|held| held.epoch)
    }

    /// Whether what was read from the store at `moment` is all that former owners of the shard have written.
    pub(crate) fn held_before(&self, shard: ShardId, moment: Instant) -> bool {
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        shards.get(&shard).is_some_and(|held| held.since <= moment)
    }

    /// Whether this node may speak for a shard without asking the store.
    pub(crate) fn speaks_for(&self, shard: ShardId, epoch: Epoch) -> bool {
        self.lease_holds() && self.epoch(shard) == Some(epoch)
    }

    /// Who holds a shard, as far as is known.
    pub(crate) fn holder(&self, shard: ShardId) -> Option<NodeId> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        view.as_ref()?.owners.get(usize::from(shard.0)).cloned().flatten()
    }

    /// The shards that this node holds.
    pub(crate) fn held(&self) -> Vec<ShardId> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    pub(crate) fn hold(&self, shard: ShardId, epoch: Epoch) {
        let held = Held { epoch, since: Instant::now() };
        self.shards.write().unwrap_or_else(PoisonError::into_inner).insert(shard, held);
    }

    pub(crate) fn let_go(&self, shard: ShardId) {
        self.shards.write().unwrap_or_else(PoisonError::into_inner).remove(&shard);
    }

    /// Takes in who is there; returns the workers that were there before and are not now.
    pub(crate) fn see(&self, view: LeaseView) -> Vec<WorkerId> {
        let mut seen = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let before = seen.as_ref().map_or(&[][..], |seen| &seen.nodes[..]);
        let gone = before.iter().filter(|node| view.nodes.iter().all(|other| other.id != node.id));
        // A worker has the id of its node.
        let gone = gone.map(|node| WorkerId::new(node.id.as_str())).collect();
        *seen = Some(view);
        gone
    }

    /// An instance cannot be read or written.
    pub(crate) fn damaged(&self, instance: &InstanceId, reason: String) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        damaged.entry(instance.clone()).or_insert_with(|| (reason, self.store.now()));
    }

    /// An instance goes on.
    pub(crate) fn mended(&self, instance: &InstanceId) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if !damaged.is_empty() {
            damaged.remove(instance);
        }
    }

    /// Whether the turn of an instance could not begin, as nobody has its code.
    pub(crate) fn note_stalled(&self, instance: &InstanceId, stalled: bool) {
        let mut known = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        if stalled {
            known.insert(instance.clone());
        } else if !known.is_empty() {
            known.remove(instance);
        }
    }

    /// Other nodes look after them now; those that stay here are noted again at their next try.
    pub(crate) fn forget_stalled(&self) {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Activities and instances that wait for code that nobody has.
    #[cfg(feature = "telemetry")]
    pub(crate) fn unserved_count(&self) -> usize {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner).len();
        stalled + self.unserved.load(Ordering::Relaxed)
    }

    /// The instance's code runs until the guard is dropped.
    pub(crate) fn decides<'a>(&'a self, instance: &'a InstanceId) -> Deciding<'a> {
        self.lock_deciding().insert(instance.clone(), Instant::now());
        Deciding { node: self, instance }
    }

    /// Instances whose code has run for longer than this without coming back, and for how long.
    pub(crate) fn deciding_for(&self, least: Duration) -> Vec<(InstanceId, Duration)> {
        let deciding = self.lock_deciding();
        let ages = deciding.iter().map(|(instance, since)| (instance.clone(), since.elapsed()));
        ages.filter(|(_, age)| *age >= least).collect()
    }

    fn lock_deciding(&self) -> MutexGuard<'_, HashMap<InstanceId, Instant>> {
        self.deciding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the workers of all live nodes run.
    pub(crate) fn workers(&self) -> Vec<WorkerInfo> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        view.iter().flat_map(|view| &view.nodes).filter_map(|node| node.worker.clone()).collect()
    }

    /// Whether another node that is alive runs orchestrations.
    pub(crate) fn others_have_code(&self) -> bool {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        view.iter().flat_map(|view| &view.nodes).any(|node| node.id != self.id && !node.handlers.is_empty())
    }

    /// A shard whose owner has the code that this node lacks.
    pub(crate) fn shard_that_serves(&self, name: &str, version: Option<&str>) -> Option<ShardId> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let view = view.as_ref()?;
        let serves = |id: &NodeId| {
            let node = view.nodes.iter().find(|node| node.id == *id && node.id != self.id);
            node.is_some_and(|node| {
                node.handlers.iter().any(|(n, v)| n == name && version.is_none_or(|version| v == version))
            })
        };
        let index = view.owners.iter().position(|owner| owner.as_ref().is_some_and(serves))?;
        u16::try_from(index).ok().map(ShardId)
    }
}
