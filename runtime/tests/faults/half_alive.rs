//! A broker that is there and does not do all that it should: a disk that was full, messages that it does not take.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus, RuntimeOptions,
};
use outlast_test_support::{NatsServer, SmallDisk};

use crate::node::{Cluster, Load, PATIENCE, Role};

/// After a full disk nats-server refuses all work until its stream is made anew, and tells nobody.
#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_after_the_disk_under_the_broker_was_full_and_clients_are_told() {
    let disk = SmallDisk::mount("24m");
    let nats = NatsServer::own_at(&disk.path().join("store"), "");
    let cluster = Cluster::on(&Cluster::shared().postgres, &nats.url);
    let _node = cluster.process(Role::Orchestrator);
    let _worker = cluster.process(Role::Worker);
    let client = cluster.client().await;
    let mut load = Load::new(client.clone(), "i");
    load.start(1).await;
    load.is_under_way().await;
    disk.fill();
    load.start(60).await;
    let begun = Instant::now();
    while !client.list_problems().await.unwrap().iter().any(|problem| problem.reason.contains("disk has room")) {
        assert!(begun.elapsed() < PATIENCE, "clients are told");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    disk.make_room();
    load.finish().await;
}

async fn node(cluster: &Cluster, slots: usize) -> Arc<Runtime> {
    let activities = ActivityRegistry::builder()
        .register("Echo", |_: ActivityContext, input: String| async move { Ok(input) })
        .register("Fail", |_: ActivityContext, input: String| async move { Err::<String, _>(input) });
    let code = |ctx: OrchestrationContext, input: String| async move {
        ctx.set_custom_status(input.get(..200_000).unwrap_or(&input));
        let echo = ctx.schedule_activity("Echo", &input).await?;
        let failed = ctx.schedule_activity("Fail", echo).await.unwrap_err();
        if failed.len() % 2 == 0 { Ok(failed) } else { Err(failed) }
    };
    let orchestrations = OrchestrationRegistry::builder().register("Carry", code);
    let orchestrations = if slots == 0 { orchestrations.build() } else { OrchestrationRegistry::default() };
    let options = RuntimeOptions { worker_concurrency: slots, ..RuntimeOptions::default() };
    Runtime::start_with_options(cluster.provider().await, activities.build(), orchestrations, options).await
}

/// Starts, items, reports and statuses of sizes around what the server takes; whatever does not fit goes through the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_small_messages_carries_payloads_of_every_size() {
    for max_payload in [16 << 10, 64 << 10] {
        let directory = tempfile::tempdir().unwrap();
        let nats = NatsServer::own_at(directory.path(), &format!("max_payload: {max_payload}\n"));
        let cluster = Cluster::on(&Cluster::shared().postgres, &nats.url);
        let (_orchestrator, _worker) = (node(&cluster, 0).await, node(&cluster, 16).await);
        let client = cluster.client().await;
        let near = [8 << 10, 16 << 10, 56 << 10, 64 << 10].into_iter().flat_map(|size| size - 600..size + 600);
        let sizes: Vec<usize> = near.step_by(101).chain([1, 100_000, 262_144, 300_001, 1_048_401]).collect();
        for size in &sizes {
            client.start_orchestration(size.to_string(), "Carry", "x".repeat(*size)).await.unwrap();
        }
        for size in &sizes {
            match client.wait_for_orchestration(&size.to_string(), PATIENCE).await.unwrap() {
                OrchestrationStatus::Completed { output, .. } => assert_eq!(output.len(), *size),
                OrchestrationStatus::Failed { details, .. } => assert_eq!(details.display_message().len(), *size),
                other => panic!("{size}: {other:?}"),
            }
        }
    }
}

/// Status updates are a short cut: whoever waits looks into the store too.
#[tokio::test(flavor = "multi_thread")]
async fn waits_end_for_clients_that_hear_no_status_updates() {
    let directory = tempfile::tempdir().unwrap();
    let rights = "authorization { users = [ { user: u, password: p, permissions: { publish: \">\", \
                  subscribe: { allow: \">\", deny: \"*.status.>\" } } } ] }\n";
    let nats = NatsServer::own_at(directory.path(), rights);
    let cluster = Cluster::on(&Cluster::shared().postgres, &nats.url.replace("nats://", "nats://u:p@"));
    let (_orchestrator, _worker) = (node(&cluster, 0).await, node(&cluster, 16).await);
    let client = cluster.client().await;
    client.start_orchestration("i", "Carry", "even").await.unwrap();
    let status = client.wait_for_orchestration("i", PATIENCE).await.unwrap();
    assert!(matches!(&status, OrchestrationStatus::Completed { output, .. } if output == "even"), "{status:?}");
}
