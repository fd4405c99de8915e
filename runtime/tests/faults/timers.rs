//! Timers live in the store: neither nodes nor the broker have to remember them.

use std::time::Duration;

use outlast::{EventKind, OrchestrationStatus};
use outlast_test_support::NatsServer;

use crate::node::{Cluster, PATIENCE, Role};

/// More than a node keeps in memory: a minute.
const BEYOND: Duration = Duration::from_secs(63);
const TIMERS: u64 = 300;

#[tokio::test(flavor = "multi_thread")]
async fn timers_beyond_the_horizon_survive_the_loss_of_all_nodes_and_of_the_broker() {
    let mut nats = NatsServer::own();
    let cluster = Cluster::on(&Cluster::shared().postgres, &nats.url);
    let mut nodes = [cluster.process(Role::Both), cluster.process(Role::Both)];
    let client = cluster.client().await;
    for number in 0..TIMERS {
        // Some are due while nobody is there.
        let wait = if number % 3 == 0 { Duration::from_secs(1) } else { BEYOND + Duration::from_millis(number * 10) };
        client.start_orchestration(format!("t{number}"), "Due", wait.as_millis().to_string()).await.unwrap();
    }
    while client.get_queue_depths().await.unwrap().orchestrator_queue > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    nodes.iter_mut().for_each(|node| node.kill());
    nats.kill();
    nats.wipe();
    tokio::time::sleep(Duration::from_secs(2)).await;
    nats.up();
    let _after = [cluster.process(Role::Both), cluster.process(Role::Both)];
    for number in 0..TIMERS {
        let id = format!("t{number}");
        let status = client.wait_for_orchestration(&id, PATIENCE * 2).await.unwrap();
        assert!(matches!(status, OrchestrationStatus::Completed { .. }), "{id}: {status:?}");
        let history = client.read_execution_history(&id, 1).await.unwrap();
        let fired = history.iter().filter_map(|event| match event.kind {
            EventKind::TimerFired { fire_at_ms } => Some(event.timestamp_ms >= fire_at_ms),
            _ => None,
        });
        assert_eq!(fired.collect::<Vec<_>>(), [true], "{id}: once, and not early");
    }
}
