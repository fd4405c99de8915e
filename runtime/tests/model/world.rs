//! A runtime with a client on one provider.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use outlast::providers::Provider;
use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, ActivityRegistryBuilder, Client, ErrorDetails, OrchestrationContext,
    OrchestrationRegistry, OrchestrationRegistryBuilder, OrchestrationStatus, RuntimeOptions,
    UnregisteredBackoffConfig,
};

use crate::place::Place;

pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) runtime: Arc<Runtime>,
    /// Its data goes with the world.
    place: Option<Place>,
}

/// Many slots and quick back-offs, so that tests do not wait for defaults.
pub(crate) fn options() -> RuntimeOptions {
    RuntimeOptions {
        worker_concurrency: 16,
        unregistered_backoff: UnregisteredBackoffConfig {
            base_delay: Duration::from_millis(20),
            max_delay: Duration::from_millis(40),
        },
        ..RuntimeOptions::default()
    }
}

/// Activities that most tests use: `Echo` returns its input, `Fail` returns it as an error.
pub(crate) fn activities() -> ActivityRegistryBuilder {
    ActivityRegistry::builder()
        .register("Echo", |_: ActivityContext, input: String| async move { Ok(input) })
        .register("Fail", |_: ActivityContext, input: String| async move { Err(input) })
}

pub(crate) fn orchestration<F, Fut>(name: &str, code: F) -> OrchestrationRegistryBuilder
where
    F: Fn(OrchestrationContext, String) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<String, String>> + Send + 'static,
{
    OrchestrationRegistry::builder().register(name, code)
}

impl World {
    pub(crate) async fn start(
        activities: ActivityRegistryBuilder,
        orchestrations: OrchestrationRegistryBuilder,
    ) -> Self {
        Self::start_with(activities, orchestrations, options()).await
    }

    pub(crate) async fn start_with(
        activities: ActivityRegistryBuilder,
        orchestrations: OrchestrationRegistryBuilder,
        options: RuntimeOptions,
    ) -> Self {
        let place = Place::default();
        let mut world = Self::on(place.open().await, activities, orchestrations, options).await;
        world.place = Some(place);
        world
    }

    pub(crate) async fn on(
        provider: Arc<dyn Provider>,
        activities: ActivityRegistryBuilder,
        orchestrations: OrchestrationRegistryBuilder,
        options: RuntimeOptions,
    ) -> Self {
        let client = Client::new(provider.clone());
        let (activities, orchestrations) = (activities.build(), orchestrations.build());
        let runtime = Runtime::start_with_options(provider, activities, orchestrations, options).await;
        Self { client, runtime, place: None }
    }

    /// Runs an instance to its end.
    pub(crate) async fn run(&self, orchestration: &str, input: &str) -> Result<String, ErrorDetails> {
        let id = format!("{orchestration}-1");
        self.client.start_orchestration(&id, orchestration, input).await.unwrap();
        self.outcome(&id).await
    }

    pub(crate) async fn outcome(&self, instance: &str) -> Result<String, ErrorDetails> {
        match self.client.wait_for_orchestration(instance, SOON).await.unwrap() {
            OrchestrationStatus::Completed { output, .. } => Ok(output),
            OrchestrationStatus::Failed { details, .. } => Err(details),
            other => panic!("a wait returned {other:?}"),
        }
    }

    /// Waits until the instance has as many events as that, so that a test knows where it stands.
    pub(crate) async fn events(&self, instance: &str, count: usize) {
        for _ in 0..2_000 {
            let history = self.client.read_execution_history(instance, 1).await.unwrap();
            if history.len() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{instance} has not reached {count} events");
    }
}
