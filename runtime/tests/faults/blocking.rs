//! Code that keeps the threads of its executor busy: its node keeps its shards all the same, and people are told.

use std::sync::mpsc;
use std::time::Duration;

use outlast::runtime::Runtime;
use outlast::{ActivityRegistry, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus, RuntimeOptions};

use crate::node::{Cluster, LEASE, PATIENCE, Role};

/// A node on an executor of its own with so many threads, whose code blocks one of them; gives back how many commits failed.
fn blocking_node(cluster: &Cluster, threads: usize) -> (mpsc::Sender<()>, std::thread::JoinHandle<u64>) {
    let (stop, stopped) = mpsc::channel();
    let cluster = cluster.clone();
    let node = std::thread::spawn(move || {
        let executor =
            tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
        executor.block_on(async {
            let code = |_: OrchestrationContext, ms: String| async move {
                std::thread::sleep(Duration::from_millis(ms.parse().map_err(|_| "milliseconds")?));
                Ok("awake".to_owned())
            };
            let code = OrchestrationRegistry::builder().register("Block", code).build();
            let options = RuntimeOptions { worker_concurrency: 0, ..RuntimeOptions::default() };
            let provider = cluster.provider().await;
            let runtime = Runtime::start_with_options(provider, ActivityRegistry::default(), code, options).await;
            tokio::task::spawn_blocking(move || stopped.recv()).await.unwrap().unwrap();
            let failed = runtime.metrics_snapshot().commits_failed;
            runtime.shutdown(None).await;
            failed
        })
    });
    (stop, node)
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_blocks_every_thread_costs_no_lease() {
    let cluster = Cluster::shared();
    let _thief = cluster.process(Role::Orchestrator);
    let client = cluster.client().await;
    // Only the thief has this orchestration: it is there when that has run.
    client.start_orchestration("thief", "Due", "0").await.unwrap();
    client.wait_for_orchestration("thief", PATIENCE).await.unwrap();
    let (stop, node) = blocking_node(&cluster, 1);
    // Until both have their share, whoever has the instance may move it.
    tokio::time::sleep(LEASE).await;
    let ms = (LEASE * 3).as_millis().to_string();
    client.start_orchestration("i", "Block", ms).await.unwrap();
    let status = client.wait_for_orchestration("i", PATIENCE).await.unwrap();
    assert!(matches!(&status, OrchestrationStatus::Completed { output, .. } if output == "awake"), "{status:?}");
    stop.send(()).unwrap();
    assert_eq!(node.join().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_does_not_come_back_is_a_problem_while_it_lasts() {
    let cluster = Cluster::shared();
    let (stop, node) = blocking_node(&cluster, 2);
    let client = cluster.client().await;
    client.start_orchestration("i", "Block", "10000").await.unwrap();
    let problem = loop {
        let problems = client.list_problems().await.unwrap();
        // Until the node is there, that is a problem too.
        if let Some(problem) = problems.into_iter().find(|problem| problem.reason.contains("move what blocks it")) {
            break problem;
        }
        let status = client.get_orchestration_status("i").await.unwrap();
        assert!(matches!(status, OrchestrationStatus::Running { .. }), "nobody was told: {status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(problem.instance_id, "i", "{problem:?}");
    client.wait_for_orchestration("i", PATIENCE).await.unwrap();
    while !client.list_problems().await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.send(()).unwrap();
    node.join().unwrap();
}
