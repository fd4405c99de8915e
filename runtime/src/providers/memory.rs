//! In memory, for tests: nothing survives the process.

use std::sync::Arc;

use async_trait::async_trait;
use outlast_broker::Broker;
use outlast_broker::in_process::InProcessBroker;
use outlast_client::Provider;
use outlast_storage::Store;
use outlast_storage::memory::{MemoryStore, VirtualClock};

/// A store in memory with an in-process broker.
pub struct MemoryProvider {
    store: Arc<MemoryStore>,
    broker: Arc<InProcessBroker>,
}

impl MemoryProvider {
    /// With the machine's clock.
    pub fn new() -> Self {
        Self { store: Arc::new(MemoryStore::new()), broker: Arc::new(InProcessBroker::new()) }
    }

    /// With a clock that the test moves.
    pub fn with_clock(clock: Arc<VirtualClock>) -> Self {
        Self { store: Arc::new(MemoryStore::with_clock(clock)), broker: Arc::new(InProcessBroker::new()) }
    }
}

impl Default for MemoryProvider {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Provider for MemoryProvider {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn broker(&self) -> Arc<dyn Broker> {
        self.broker.clone()
    }
}
