//! Items that are handed out again, and workers that leave: nothing runs twice for it, and nothing stays behind.

use std::time::Duration;

use outlast_broker::{Broker, Dispatch, Settle};
use outlast_core::{TagFilter, WorkerId};

use crate::items::{assert_nothing, in_session, item, key, open, publish, publish_to, run, take};
use crate::server::Server;
use crate::world::namespace;

#[tokio::test]
async fn an_item_that_is_handed_out_again_says_so() {
    let server = Server::any();
    let broker = server.broker(&namespace()).await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    for again in [false, true] {
        broker.publish(vec![Dispatch { item: item("a", 1), worker: None, again }]).await.unwrap();
        let delivery = take(&mut source).await;
        assert_eq!(delivery.redelivered, again);
        (delivery.settle)(Settle::Ack);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn what_waits_in_an_unclaimed_session_is_not_handed_out_to_its_holder_too() {
    let server = Server::any();
    let broker = server.broker(&namespace()).await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    publish(&broker, in_session("a", 1, "s")).await;
    let running = take(&mut source).await;
    let worker = Some(WorkerId::new("w"));
    broker.publish(vec![Dispatch { item: in_session("a", 1, "s"), worker, again: true }]).await.unwrap();
    assert_nothing(&mut source).await;
    (running.settle)(Settle::Ack);
}

#[tokio::test]
async fn what_waits_for_a_worker_that_leaves_goes_to_whoever_takes_its_sessions() {
    let server = Server::any();
    let broker = server.broker(&namespace()).await;
    let mut leaving = open(&broker, "leaving", TagFilter::DefaultOnly).await;
    let mut other = open(&broker, "other", TagFilter::DefaultOnly).await;
    publish_to(&broker, in_session("a", 1, "s"), "leaving").await;
    let given = take(&mut leaving).await;
    publish_to(&broker, in_session("a", 2, "s"), "leaving").await;
    leaving.close().await;
    assert_eq!(run(&mut other).await, key("a", 2));
    (given.settle)(Settle::Requeue);
    leaving.finish().await;
    let delivery = take(&mut other).await;
    assert!(delivery.redelivered && delivery.item.key == key("a", 1));
    (delivery.settle)(Settle::Ack);
}
