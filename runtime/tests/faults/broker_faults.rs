//! The broker carries, it never remembers: whatever it loses, everything goes on.

use std::time::Duration;

use outlast_test_support::NatsServer;

use crate::node::{Cluster, Load, Role};

/// A cluster on a nats-server that the test may break.
async fn with_own_nats(fault: impl AsyncFnOnce(&mut NatsServer)) {
    let mut nats = NatsServer::own();
    let cluster = Cluster::on(&Cluster::shared().postgres, &nats.url);
    let _node = cluster.process(Role::Orchestrator);
    let _worker = cluster.process(Role::Worker);
    let mut load = Load::new(cluster.client().await, "i");
    load.start(1).await;
    load.is_under_way().await;
    load.start(30).await;
    fault(&mut nats).await;
    load.start(30).await;
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_that_comes_back_empty_costs_time_only() {
    with_own_nats(async |nats| {
        nats.kill();
        nats.wipe();
        tokio::time::sleep(Duration::from_secs(1)).await;
        nats.up();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_rolled_back_costs_time_only() {
    with_own_nats(async |nats| {
        nats.save();
        tokio::time::sleep(Duration::from_millis(700)).await;
        nats.kill();
        nats.roll_back();
        nats.up();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_are_taken_while_the_broker_is_away() {
    let mut nats = NatsServer::own();
    let cluster = Cluster::on(&Cluster::shared().postgres, &nats.url);
    let _both = cluster.process(Role::Both);
    let mut load = Load::new(cluster.client().await, "i");
    load.start(6).await;
    load.is_under_way().await;
    load.start(6).await;
    nats.kill();
    load.start(20).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    nats.up();
    load.finish().await;
}
