//! An outage of the store turns no healthy instance into a failed one.

use std::time::Duration;

use crate::node::{Cluster, Load, Role};
use crate::servers::Server;

#[tokio::test(flavor = "multi_thread")]
async fn postgres_may_stop_and_come_back() {
    let mut postgres = Server::postgres();
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
