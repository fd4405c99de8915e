//! What all parts of a node share: the provider, the code, the shards it holds and its warm instances.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use lru::LruCache;
use outlast_broker::{Broker, ReportReply};
use outlast_core::{ActivityKey, Epoch, InstanceId, Limits, Message, NodeId, OrchestrationRegistry, ShardId};
use outlast_storage::{LeaseView, Store};
use ractor::{ActorRef, ActorRuntime};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::RuntimeOptions;
use crate::committer::Committer;
use crate::instance_actor::{InstanceActor, Run};
use crate::mailbox::{Inbound, Mailbox};
use crate::wheel::Wheel;

/// A node: holds shards and runs their instances.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) orchestrations: OrchestrationRegistry,
    pub(crate) options: RuntimeOptions,
    pub(crate) limits: Arc<Limits>,
    pub(crate) committer: Committer,
    pub(crate) wheel: Wheel,
    pub(crate) stopping: CancellationToken,
    pub(crate) counters: Counters,
    /// Tries of activities that no worker had registered.
    pub(crate) unregistered: Mutex<HashMap<ActivityKey, u32>>,
    shards: RwLock<HashMap<ShardId, Epoch>>,
    view: RwLock<Option<LeaseView>>,
    warm: Mutex<LruCache<InstanceId, Warm>>,
}

/// Counts since the start of the node.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) turns: AtomicU64,
    pub(crate) commits_failed: AtomicU64,
    pub(crate) hydrations: AtomicU64,
    pub(crate) dispatched: AtomicU64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A warm instance: its actor and what waits for it.
struct Warm {
    mailbox: Arc<Mailbox>,
    actor: ActorRef<Run>,
    used: Instant,
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
        Arc::new(Self {
            committer: Committer::start(Arc::clone(&parts.store), limits.commit_group_max),
            id: parts.id,
            store: parts.store,
            broker: parts.broker,
            orchestrations: parts.orchestrations,
            options: parts.options,
            limits,
            wheel: Wheel::default(),
            stopping: CancellationToken::new(),
            counters: Counters::default(),
            unregistered: Mutex::default(),
            shards: RwLock::default(),
            view: RwLock::default(),
            warm: Mutex::new(LruCache::unbounded()),
        })
    }

    /// The epoch by which this node holds a shard.
    pub(crate) fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).get(&shard).copied()
    }

    /// The shards that this node holds.
    pub(crate) fn held(&self) -> Vec<ShardId> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    pub(crate) fn hold(&self, shard: ShardId, epoch: Epoch) {
        self.shards.write().unwrap_or_else(PoisonError::into_inner).insert(shard, epoch);
    }

    pub(crate) fn let_go(&self, shard: ShardId) {
        self.shards.write().unwrap_or_else(PoisonError::into_inner).remove(&shard);
    }

    pub(crate) fn see(&self, view: LeaseView) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Some(view);
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

    /// How many instances are warm.
    pub(crate) fn warm_count(&self) -> usize {
        self.lock_warm().len()
    }

    /// Brings something to an instance, whose actor is made when there is none.
    pub(crate) fn deliver(self: &Arc<Self>, instance: &InstanceId, inbound: Inbound) {
        if self.stopping.is_cancelled() {
            if let Inbound::Direct(_, answer) = inbound {
                let _gone = answer.send(ReportReply::TryAgain);
            }
            return;
        }
        let mut warm = self.lock_warm();
        if !warm.contains(instance) {
            let mailbox = Arc::new(Mailbox::default());
            let actor = InstanceActor::new(Arc::clone(self), instance.clone(), Arc::clone(&mailbox));
            match ActorRuntime::spawn_instant(None, actor, ()) {
                Ok((actor, _)) => {
                    warm.push(instance.clone(), Warm { mailbox, actor, used: Instant::now() });
                }
                Err(error) => {
                    tracing::error!(target: crate::observability::RUNTIME, %instance, %error, "no actor could be started");
                    return;
                }
            }
            self.trim(&mut warm);
        }
        if let Some(entry) = warm.get_mut(instance) {
            entry.used = Instant::now();
            if entry.mailbox.push(inbound) {
                // A stopped actor was taken out of the map under this very lock, so this one takes messages.
                let _accepted = entry.actor.cast(Run);
            }
        }
    }

    /// Brings a worker's result to an instance.
    pub(crate) fn deliver_direct(
        self: &Arc<Self>,
        instance: &InstanceId,
        message: Message,
        answer: oneshot::Sender<ReportReply>,
    ) {
        self.deliver(instance, Inbound::Direct(message, answer));
    }

    /// Lets go of an actor if nothing waits for it. Its memory is a cache, so this is always allowed.
    pub(crate) fn retire(&self, instance: &InstanceId, mailbox: &Arc<Mailbox>) -> bool {
        let mut warm = self.lock_warm();
        let mine = warm.peek(instance).is_some_and(|entry| Arc::ptr_eq(&entry.mailbox, mailbox));
        if !mine || !mailbox.lock().inbound.is_empty() {
            return false;
        }
        if let Some(entry) = warm.pop(instance) {
            entry.actor.stop(None);
        }
        true
    }

    /// Passivates what has not been used for a while.
    pub(crate) fn passivate_idle(&self) {
        let mut warm = self.lock_warm();
        let after = self.options.passivate_after;
        while warm.peek_lru().is_some_and(|(_, entry)| entry.used.elapsed() >= after) {
            if !pop_idle(&mut warm) {
                return;
            }
        }
    }

    /// Brings the number of warm instances back to its bound, as far as they are idle.
    pub(crate) fn passivate_surplus(&self) {
        let mut warm = self.lock_warm();
        let surplus = warm.len().saturating_sub(self.limits.warm_instances_max);
        for _ in 0..surplus {
            pop_idle(&mut warm);
        }
    }

    /// Stops all actors; whatever they were deciding is refused by the store or decided again by whoever comes next.
    pub(crate) fn passivate_all(&self) {
        let mut warm = self.lock_warm();
        while let Some((_, entry)) = warm.pop_lru() {
            entry.actor.stop(None);
            for inbound in entry.mailbox.lock().inbound.drain(..) {
                if let Inbound::Direct(_, answer) = inbound {
                    let _gone = answer.send(ReportReply::TryAgain);
                }
            }
        }
    }

    /// Whether no actor has anything to do.
    pub(crate) fn is_quiet(&self) -> bool {
        self.lock_warm().iter().all(|(_, entry)| !entry.mailbox.lock().scheduled)
    }

    fn trim(&self, warm: &mut LruCache<InstanceId, Warm>) {
        let max = NonZeroUsize::new(self.limits.warm_instances_max).map_or(1, NonZeroUsize::get);
        // Busy ones at the cold end stay; a few tries keep the bound without walking the whole cache.
        for _ in 0..4 {
            if warm.len() <= max {
                return;
            }
            pop_idle(warm);
        }
    }

    fn lock_warm(&self) -> MutexGuard<'_, LruCache<InstanceId, Warm>> {
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the least recently used actor go; a busy one counts as used just now.
fn pop_idle(warm: &mut LruCache<InstanceId, Warm>) -> bool {
    let Some((instance, entry)) = warm.pop_lru() else {
        return false;
    };
    if entry.mailbox.lock().scheduled {
        warm.push(instance, Warm { used: Instant::now(), ..entry });
        return false;
    }
    entry.actor.stop(None);
    true
}
