//! An outage of the store turns no healthy instance into a failed one, and one that comes back older is read anew.

use std::time::Duration;

use outlast::runtime::Runtime;
use outlast::{ActivityContext, ActivityRegistry, OrchestrationContext, OrchestrationRegistry, RuntimeOptions};
use outlast_test_support::PostgresServer;
use tokio::sync::watch;

use crate::node::{Cluster, Load, PATIENCE, Role};

#[tokio::test(flavor = "multi_thread")]
async fn postgres_may_stop_and_come_back() {
    let mut postgres = PostgresServer::trusting();
    let cluster = Cluster::on(&postgres.url, &Cluster::shared().nats);
    let _first = cluster.process(Role::Both);
    let _second = cluster.process(Role::Both);
    let mut load = Load::new(cluster.client().await, "i");
    for away in [0, 3_500] {
        load.start(30).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        postgres.stop_immediately();
        tokio::time::sleep(Duration::from_millis(away)).await;
        postgres.up();
        load.start(10).await;
    }
    load.finish().await;
}

/// Goal: what an older state of the store says is what happens next, whatever the nodes remember.
/// Method: instances have an activity under way when the database's files are copied; they end, the files are put back. The nodes
/// have seen the outcomes and handed out nothing since, but the store waits for them again.
#[tokio::test(flavor = "multi_thread")]
async fn postgres_may_go_back_to_an_older_state_under_living_nodes() {
    let mut postgres = PostgresServer::trusting();
    let cluster = Cluster::on(&postgres.url, &Cluster::shared().nats);
    let (open, gate) = watch::channel(false);
    let begun = watch::Sender::new(0);
    let counting = begun.clone();
    let activities = ActivityRegistry::builder()
        .register("Gate", move |_: ActivityContext, input: String| {
            let mut gate = gate.clone();
            counting.send_modify(|count| *count += 1);
            async move {
                gate.wait_for(|open| *open).await.map_err(|error| error.to_string())?;
                Ok(input)
            }
        })
        .build();
    let orchestrations = OrchestrationRegistry::builder()
        .register("Gated", |ctx: OrchestrationContext, id: String| async move {
            let passed = ctx.schedule_activity("Gate", id).await?;
            Ok(format!("{passed} {}", ctx.dequeue_event("q").await))
        })
        .build();
    let options = RuntimeOptions { worker_concurrency: 32, ..RuntimeOptions::default() };
    let node = Runtime::start_with_options(cluster.provider().await, activities, orchestrations, options).await;
    let client = cluster.client().await;
    for number in 0..8 {
        client.start_orchestration(format!("i{number}"), "Gated", format!("i{number}")).await.unwrap();
    }
    begun.subscribe().wait_for(|count| *count >= 8).await.unwrap();
    postgres.stop_immediately();
    postgres.copy_data(false);
    postgres.up();
    open.send_replace(true);
    for life in ["first", "second"] {
        for number in 0..8 {
            client.enqueue_event(format!("i{number}"), "q", life).await.unwrap();
        }
        for number in 0..8 {
            let output: String = match client.wait_for_orchestration(&format!("i{number}"), PATIENCE).await.unwrap() {
                outlast::OrchestrationStatus::Completed { output, .. } => output,
                other => panic!("i{number}: {other:?}"),
            };
            assert_eq!(output, format!("i{number} {life}"));
        }
        if life == "first" {
            postgres.stop_immediately();
            postgres.copy_data(true);
            postgres.up();
        }
    }
    node.shutdown(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_reads_after_a_restart_of_postgres_are_repeated() {
    let mut postgres = PostgresServer::trusting();
    let cluster = Cluster::on(&postgres.url, &Cluster::shared().nats);
    let provider = cluster.provider().await;
    let client = outlast::Client::new(provider.clone());
    client.start_orchestration("i", "Nobody", "x").await.unwrap();
    // Every connection of the pool is open, so every one of them fails once.
    for _ in 0..2 {
        let reads = (0..16).map(|_| client.get_system_metrics());
        futures::future::join_all(reads).await;
        postgres.stop_immediately();
        postgres.up();
        client.read_execution_history("i", 1).await.unwrap();
        let (metrics, status) = tokio::join!(client.get_system_metrics(), client.get_orchestration_status("i"));
        assert_eq!(metrics.unwrap().total_instances, 1);
        assert!(matches!(status.unwrap(), outlast::OrchestrationStatus::Running { .. }));
        postgres.stop_immediately();
        postgres.up();
        let looks =
            tokio::join!(client.list_all_instances(), client.get_instance_info("i"), client.get_instance_tree("i"));
        assert_eq!(looks.0.unwrap().len(), 1);
        assert_eq!((looks.1.unwrap().instance_id, looks.2.unwrap().all_ids.len()), ("i".to_owned(), 1));
        let looks = tokio::join!(
            client.list_executions("i"),
            client.get_kv_all_values("i"),
            client.get_kv_value("i", "k"),
            client.get_queue_depths(),
            client.get_orchestration_stats("i"),
            client.list_problems()
        );
        assert!(looks.0.is_ok() && looks.1.is_ok() && looks.2.is_ok() && looks.3.is_ok() && looks.4.is_ok());
        assert!(looks.5.is_ok());
    }
}
