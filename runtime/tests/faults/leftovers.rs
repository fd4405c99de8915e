//! Activities whose instance has gone elsewhere or nowhere: nobody offers them for ever.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus,
    RuntimeOptions,
};
use tokio::sync::Semaphore;

use crate::node::{Cluster, LEASE, PATIENCE};

/// By then whatever is still outstanding has been offered again.
const OFFERED: Duration = Duration::from_secs(12);

/// An activity that waits until it is let through, and how often it has begun for each input.
#[derive(Clone)]
struct Gate {
    begun: Arc<Mutex<BTreeMap<String, u32>>>,
    open: Arc<Semaphore>,
}

impl Gate {
    fn new() -> (Self, ActivityRegistry) {
        let gate = Self { begun: Arc::default(), open: Arc::new(Semaphore::new(0)) };
        let inside = gate.clone();
        let pass = move |_: ActivityContext, input: String| {
            let gate = inside.clone();
            async move {
                *gate.begun.lock().unwrap().entry(input.clone()).or_default() += 1;
                drop(gate.open.acquire().await.map_err(|error| error.to_string())?);
                Ok(input)
            }
        };
        (gate, ActivityRegistry::builder().register("Pass", pass).build())
    }

    async fn until_begun(&self, count: usize) {
        while self.begun.lock().unwrap().len() < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn run_more_than_once(&self) -> Vec<(String, u32)> {
        let begun = self.begun.lock().unwrap();
        begun.iter().filter(|(_, runs)| **runs > 1).map(|(input, runs)| (input.clone(), *runs)).collect()
    }
}

fn code(name: &str) -> OrchestrationRegistry {
    let code = |ctx: OrchestrationContext, input: String| async move { ctx.schedule_activity("Pass", input).await };
    OrchestrationRegistry::builder().register(name, code).build()
}

fn options(worker_concurrency: usize) -> RuntimeOptions {
    RuntimeOptions { worker_concurrency, ..RuntimeOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activity_of_a_deleted_instance_is_not_run_again() {
    let cluster = Cluster::shared();
    let (gate, activities) = Gate::new();
    let runtime = Runtime::start_with_options(cluster.provider().await, activities, code("Hold"), options(4)).await;
    let client = cluster.client().await;
    client.start_orchestration("i", "Hold", "i").await.unwrap();
    gate.until_begun(1).await;
    client.delete_instance("i", true).await.unwrap();
    gate.open.add_permits(100);
    tokio::time::sleep(OFFERED).await;
    assert_eq!(gate.run_more_than_once(), []);
    runtime.shutdown(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activity_of_an_instance_that_moved_is_not_run_again() {
    const COUNT: usize = 16;
    let cluster = Cluster::shared();
    let (gate, activities) = Gate::new();
    let has = Runtime::start_with_options(cluster.provider().await, activities, code("Hold"), options(COUNT)).await;
    let client: Client = cluster.client().await;
    for number in 0..COUNT {
        client.start_orchestration(format!("i{number}"), "Hold", format!("i{number}")).await.unwrap();
    }
    gate.until_begun(COUNT).await;
    // It takes half of the shards, and has to give their instances back.
    let none = ActivityRegistry::default();
    let lacks = Runtime::start_with_options(cluster.provider().await, none, code("Other"), options(0)).await;
    tokio::time::sleep(LEASE * 2).await;
    gate.open.add_permits(100);
    for number in 0..COUNT {
        let status = client.wait_for_orchestration(&format!("i{number}"), PATIENCE).await.unwrap();
        assert!(matches!(status, OrchestrationStatus::Completed { .. }), "{status:?}");
    }
    tokio::time::sleep(OFFERED).await;
    assert_eq!(gate.run_more_than_once(), []);
    lacks.shutdown(None).await;
    has.shutdown(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_of_a_deleted_instance_that_comes_again_is_not_begun() {
    let cluster = Cluster::shared();
    let (gate, activities) = Gate::new();
    let none = ActivityRegistry::default();
    let owner = Runtime::start_with_options(cluster.provider().await, none, code("Hold"), options(0)).await;
    let no_code = OrchestrationRegistry::default();
    let first =
        Runtime::start_with_options(cluster.provider().await, activities.clone(), no_code.clone(), options(1)).await;
    let client = cluster.client().await;
    client.start_orchestration("i", "Hold", "i").await.unwrap();
    gate.until_begun(1).await;
    client.delete_instance("i", true).await.unwrap();
    first.shutdown(Some(0)).await;
    let second = Runtime::start_with_options(cluster.provider().await, activities, no_code, options(1)).await;
    gate.open.add_permits(100);
    // By then the item has come to it.
    tokio::time::sleep(Duration::from_secs(5)).await;
    // Nor does it hold the only slot for as long as a question without an answer is repeated.
    client.start_orchestration("j", "Hold", "j").await.unwrap();
    client.wait_for_orchestration("j", OFFERED).await.unwrap();
    assert_eq!(gate.run_more_than_once(), []);
    second.shutdown(None).await;
    owner.shutdown(None).await;
}
