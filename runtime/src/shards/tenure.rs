//! The shards that this node holds, their epochs, and its lease. Turns and answers to workers ask here; only `membership` and
//! `renewal` change it. It never asks the store.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use outlast_core::{Epoch, ShardId};
use tokio::time::Instant;

/// The shards that a node holds, and its lease on them.
pub(crate) struct Tenure {
    shards: RwLock<BTreeMap<ShardId, Held>>,
    lease: Mutex<Lease>,
    /// Rises when the store has gone back to an older state; reads under another generation are not trusted.
    generation: AtomicU64,
    /// The node takes no more shards.
    leaving: AtomicBool,
    /// Whether the node has left. Locked across every call that tells the store of this node, so that none arrives there after
    /// its farewell.
    pub(crate) has_left: tokio::sync::Mutex<bool>,
}

/// The epoch by which this node holds a shard, and since when it knows.
#[derive(Clone, Copy)]
struct Held {
    epoch: Epoch,
    since: Instant,
}

/// The lease, by this node's monotonic clock; `None` is for ever.
struct Lease {
    /// Until when this node may speak for its shards.
    until: Option<Instant>,
    /// The same, by the last renewal that took at most half a lease.
    steady_until: Option<Instant>,
    /// When the store was asked for the last renewal that succeeded.
    renewed_at: Instant,
}

impl Tenure {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            shards: RwLock::default(),
            lease: Mutex::new(Lease { until: Some(now), steady_until: Some(now), renewed_at: now }),
            generation: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            has_left: tokio::sync::Mutex::new(false),
        }
    }

    /// Rises each time the store goes back to an older state.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The store went back to an older state. From now on no turn builds on what was read before.
    pub(crate) fn begin_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// A renewal that was sent at `sent` has succeeded. The lease counts from there: the store may have answered late.
    pub(crate) fn renewed(&self, sent: Instant, duration: Duration) {
        let mut lease = self.lock_lease();
        lease.until = sent.checked_add(duration);
        lease.renewed_at = sent;
        if sent.elapsed() <= duration / 2 {
            lease.steady_until = lease.until;
        }
    }

    /// Whether no other node can hold this node's shards. The store fences commits; answers without a commit must ask here.
    pub(crate) fn lease_is_valid(&self) -> bool {
        self.lock_lease().until.is_none_or(|until| Instant::now() < until)
    }

    /// Whether the lease is valid and likely to stay so. After an outage, the first answer may be to a renewal that was sent long
    /// before: it makes the lease valid, but only for a moment.
    pub(crate) fn lease_is_steady(&self) -> bool {
        self.lock_lease().steady_until.is_none_or(|until| Instant::now() < until)
    }

    /// How long ago the last renewal that succeeded was sent.
    pub(crate) fn silence(&self) -> Duration {
        self.lock_lease().renewed_at.elapsed()
    }

    /// The epoch by which this node holds a shard.
    pub(crate) fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).get(&shard).map(|held| held.epoch)
    }

    /// Whether a read that began at `moment` shows all that former owners of the shard have written.
    pub(crate) fn held_before(&self, shard: ShardId, moment: Instant) -> bool {
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        shards.get(&shard).is_some_and(|held| held.since <= moment)
    }

    /// Whether this node may speak for a shard without asking the store.
    pub(crate) fn speaks_for(&self, shard: ShardId, epoch: Epoch) -> bool {
        self.lease_is_valid() && self.epoch(shard) == Some(epoch)
    }

    /// The shards that this node holds.
    pub(crate) fn held(&self) -> Vec<ShardId> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// The store has given this node a shard.
    pub(crate) fn take(&self, shard: ShardId, epoch: Epoch) {
        let held = Held { epoch, since: Instant::now() };
        self.shards.write().unwrap_or_else(PoisonError::into_inner).insert(shard, held);
    }

    /// This node no longer runs the shard.
    pub(crate) fn drop_shard(&self, shard: ShardId) {
        self.shards.write().unwrap_or_else(PoisonError::into_inner).remove(&shard);
    }

    /// From now on the node takes no more shards.
    pub(crate) fn begin_to_leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    fn lock_lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
