//! A store and a broker that belong together.

use std::sync::Arc;

use async_trait::async_trait;
use outlast_broker::Broker;
use outlast_core::{Event, InstanceId};
use outlast_storage::Store;

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
