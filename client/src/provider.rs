//! A store and a broker that belong together.

use std::sync::Arc;

use async_trait::async_trait;
use outlast_broker::Broker;
use outlast_core::{Event, InstanceId};
use outlast_storage::{Arrival, Store};

/// What a provider tells its store to do with arrivals: the broker carries them to the owners of the shards.
pub fn carry_arrivals(broker: Arc<dyn Broker>) -> impl Fn(Arrival) + Send + Sync + 'static {
    move |arrival| match arrival {
        Arrival::Begin(shard, beginning) => broker.begin(shard, beginning),
        Arrival::Nudge(shard, instance) => broker.nudge(shard, instance),
    }
}

/// A provider as clients and runtimes share it.
pub type ProviderRef = Arc<dyn Provider>;

/// The handle that clients and runtimes are made from.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// Where everything is durable.
    fn store(&self) -> Arc<dyn Store>;

    /// What carries work and news.
    fn broker(&self) -> Arc<dyn Broker>;

    /// The history of an instance's current execution; empty when there is none.
    async fn read(&self, instance: &str) -> Vec<Event> {
        let (store, id) = (self.store(), InstanceId::new(instance));
        let Ok(Some(state)) = store.state(&id).await else { return Vec::new() };
        let events = store.history(&id, state.execution).await.unwrap_or_default();
        events.into_iter().map(|event| Event::from_stored(&id, state.execution, event)).collect()
    }
}
