//! What has come for an instance from outside is told by the store itself, in the very moment in which it is durable. The
//! caller may be gone by then: its future is dropped by a `select!`, a timeout or an HTTP client that hangs up.

use std::sync::{Arc, OnceLock};

use outlast_core::{InstanceId, ShardId, StartSnapshot};

use crate::{StartReceipt, StartRequest};

/// Something that waits for an instance, and is durable.
#[derive(Clone, Debug)]
pub enum Arrival {
    /// The instance is new, and this is all that its first turn needs.
    Begin(ShardId, StartSnapshot),
    /// Its inbox has something new.
    Nudge(ShardId, InstanceId),
}

impl Arrival {
    /// What a start has brought.
    pub(crate) fn started(request: Arc<StartRequest>, receipt: &StartReceipt) -> Self {
        let StartRequest { instance, message, .. } = Arc::unwrap_or_clone(request);
        match receipt.seq {
            Some(seq) => Self::Begin(receipt.shard, StartSnapshot { instance, message, seq }),
            None => Self::Nudge(receipt.shard, instance),
        }
    }
}

/// Who is told of arrivals: whoever carries them to the owners of the shards. Nobody, until it is set.
#[derive(Clone, Default)]
pub(crate) struct Listener(Arc<OnceLock<Box<Told>>>);

type Told = dyn Fn(Arrival) + Send + Sync;

impl Listener {
    /// The first one stays.
    pub(crate) fn set(&self, listener: impl Fn(Arrival) + Send + Sync + 'static) {
        let _first = self.0.set(Box::new(listener));
    }

    pub(crate) fn tell(&self, arrival: Arrival) {
        if let Some(listener) = self.0.get() {
            listener(arrival);
        }
    }
}
