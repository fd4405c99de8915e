//! A store and a broker that belong together.

use std::sync::Arc;

use async_trait::async_trait;
use outlast_broker::{Broker, ShardNotice};
use outlast_core::{Event, InstanceId};
use outlast_storage::{Arrival, Store};

use crate::ClientOptions;
use crate::insist::insist_for;
use crate::surroundings::Surroundings;

/// The handler that a provider sets for arrivals in its store: the broker carries them to the owners of the shards.
pub fn carry_arrivals(broker: Arc<dyn Broker>) -> impl Fn(Arrival) + Send + Sync + 'static {
    move |arrival| match arrival {
        Arrival::Begin(shard, snapshot) => broker.notify(shard, ShardNotice::Started(Box::new(snapshot))),
        Arrival::Nudge(shard, instance) => broker.notify(shard, ShardNotice::Nudge(instance)),
    }
}

/// A provider as clients and runtimes share it.
pub type ProviderRef = Arc<dyn Provider>;

/// The handle that clients and runtimes are made from.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// Where everything is durable.
    fn store(&self) -> Arc<dyn Store>;

    /// What carries work and messages.
    fn broker(&self) -> Arc<dyn Broker>;

    /// Where tasks run and random bits come from.
    fn surroundings(&self) -> Surroundings {
        Surroundings::default()
    }

    /// The history of an instance's current execution; empty when there is none.
    async fn read(&self, instance: &str) -> Vec<Event> {
        let (store, id) = (self.store(), InstanceId::new(instance));
        // Insists: a store that is away for a moment must not look like an instance that does not exist.
        let limit = ClientOptions::default().call_timeout;
        let Ok(Some(state)) = insist_for(&*store, limit, |_| store.state(&id)).await else { return Vec::new() };
        let events =
            insist_for(&*store, limit, |_| store.history(&id, state.execution, None)).await.unwrap_or_default();
        events.into_iter().map(|event| Event::from_stored(&id, state.execution, event)).collect()
    }
}
