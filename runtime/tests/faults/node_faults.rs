//! Nodes and workers that die, are stopped, come and go.

use std::time::Duration;

use outlast::OrchestrationStatus;

use crate::node::{Cluster, LEASE, Load, Node, PATIENCE, Role};

#[tokio::test(flavor = "multi_thread")]
async fn killed_nodes_are_followed() {
    let cluster = Cluster::shared();
    let _survivor = cluster.process(Role::Both);
    let mut victim = cluster.process(Role::Both);
    let mut load = Load::new(cluster.client().await, "i");
    for _ in 0..3 {
        load.start(30).await;
        tokio::time::sleep(Duration::from_millis(900)).await;
        victim.kill();
        load.start(15).await;
        tokio::time::sleep(LEASE).await;
        victim = cluster.process(Role::Both);
    }
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_stopped_past_its_lease_harms_nothing() {
    let cluster = Cluster::shared();
    let nodes: Vec<Node> = (0..2).map(|_| cluster.process(Role::Both)).collect();
    let mut load = Load::new(cluster.client().await, "i");
    for node in &nodes {
        load.start(40).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        node.signal("-STOP");
        load.start(20).await;
        tokio::time::sleep(LEASE * 2).await;
        node.signal("-CONT");
    }
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_reaches_a_worker_in_another_process() {
    let cluster = Cluster::shared();
    let _orchestrator = cluster.process(Role::Orchestrator);
    let _worker = cluster.process(Role::Worker);
    let client = cluster.client().await;
    client.start_orchestration("witness", "Witness", "").await.unwrap();
    client.start_orchestration("hold", "Hold", "witness").await.unwrap();
    client.wait_for_status_change("witness", 0, Duration::from_secs(1), PATIENCE).await.unwrap();
    client.cancel_instance("hold", "enough").await.unwrap();
    let status = client.wait_for_orchestration("witness", PATIENCE).await.unwrap();
    assert!(matches!(status, OrchestrationStatus::Completed { .. }), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_leave_properly_hand_over_at_once() {
    let cluster = Cluster::shared();
    let client = cluster.client().await;
    let mut load = Load::new(client, "i");
    let mut before = cluster.runtime(Role::Both).await;
    for _ in 0..4 {
        load.start(20).await;
        let next = cluster.runtime(Role::Both).await;
        std::mem::replace(&mut before, next).shutdown(Some(5_000)).await;
    }
    load.finish().await;
    before.shutdown(None).await;
}
