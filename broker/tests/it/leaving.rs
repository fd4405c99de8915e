//! Items that are handed out again, and workers that leave: nothing runs twice for it, and nothing stays behind.

use std::time::Duration;

use outlast_broker::jetstream::{JetStreamBroker, JetStreamOptions};
use outlast_broker::{Broker, Dispatch, Settle, Withdrawal};
use outlast_core::{TagFilter, WorkerId};

use crate::items::{assert_nothing, in_session, item, key, open, publish, publish_to, run, take};
use crate::server::{Connects as _, Server};
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

/// The first copy waits where only workers with room for more sessions take any.
#[tokio::test]
async fn what_waits_in_a_session_that_was_free_comes_to_its_holder_when_it_is_handed_out_again() {
    let server = Server::any();
    let broker = server.broker(&namespace()).await;
    let mut full = open(&broker, "w", TagFilter::DefaultOnly).await;
    full.admit_sessions(false);
    publish(&broker, in_session("a", 1, "s")).await;
    assert_nothing(&mut full).await;
    let worker = Some(WorkerId::new("w"));
    broker.publish(vec![Dispatch { item: in_session("a", 1, "s"), worker, again: true }]).await.unwrap();
    let delivery = take(&mut full).await;
    // It asks the owner before it runs what may have run elsewhere.
    assert!(delivery.redelivered);
    (delivery.settle)(Settle::Ack);
    assert_nothing(&mut full).await;
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

/// Until the caller's patience ends there is nothing to wait for.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_leaves_at_once_when_the_server_is_away() {
    let mut server = Server::own();
    let broker = server.broker("away").await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let (mail, _letters) = tokio::sync::mpsc::unbounded_channel();
    broker.own(&[outlast_core::ShardId(1)], mail.clone()).await.unwrap();
    publish(&broker, item("a", 1)).await;
    let held = take(&mut source).await;
    server.kill();
    while broker.state().is_connected {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let begun = std::time::Instant::now();
    source.close().await;
    (held.settle)(Settle::Requeue);
    source.finish().await;
    broker.disown(&[outlast_core::ShardId(1)], &mail).await;
    broker.withdraw(Withdrawal::Worker(WorkerId::new("w"))).await.unwrap();
    drop((source, broker));
    // One wait for an answer alone would take longer.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_worker_that_has_left_and_was_forgotten_leaves_nothing_at_the_server() {
    let server = Server::any();
    let namespace = namespace();
    let broker = server.broker(&namespace).await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    publish_to(&broker, in_session("a", 1, "s"), "w").await;
    assert_eq!(run(&mut source).await, key("a", 1));
    source.close().await;
    source.finish().await;
    // It comes too late for the worker.
    publish_to(&broker, in_session("a", 2, "s"), "w").await;
    broker.withdraw(Withdrawal::Worker(WorkerId::new("w"))).await.unwrap();
    let js = async_nats::jetstream::new(async_nats::connect(&server.url).await.unwrap());
    let mut stream = js.get_stream(format!("{namespace}_WORK")).await.unwrap();
    let names: Vec<String> = futures::TryStreamExt::try_collect(stream.consumer_names()).await.unwrap();
    assert!(names.iter().all(|name| !name.starts_with("worker-")), "{names:?}");
    assert_eq!(stream.info().await.unwrap().state.messages, 1, "the anchor alone");
}

/// A task that waits for the server would keep the connection for ever. Two are the library's: they try to connect until they can,
/// and then see that nobody is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_dropped_while_the_server_is_away_leaves_no_task_and_no_connection() {
    let mut server = Server::own();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let broker = server.broker("dropped").await;
    let source = open(&broker, "w", TagFilter::Any).await;
    let (mail, letters) = tokio::sync::mpsc::unbounded_channel();
    broker.own(&[outlast_core::ShardId(1)], mail).await.unwrap();
    let watch = broker.watch(&"a".into());
    publish(&broker, item("a", 1)).await;
    server.kill();
    while broker.state().is_connected {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop((source, letters, watch, broker));
    let until_left = async |most: usize| {
        let begun = std::time::Instant::now();
        while tasks() > before + most {
            assert!(begun.elapsed() < Duration::from_secs(30), "{} tasks are left", tasks() - before);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    until_left(2).await;
    server.up();
    until_left(0).await;
}

/// As when its process was killed and no other node has seen it go.
#[tokio::test]
async fn what_lies_in_the_lane_of_a_worker_that_is_gone_is_dropped() {
    let server = Server::any();
    let namespace = namespace();
    let options = JetStreamOptions { unused_tag_kept: Duration::from_secs(2), ..server.options(&namespace) };
    let broker = JetStreamBroker::connect(options).await.unwrap();
    let _live = open(&broker, "live", TagFilter::DefaultOnly).await;
    publish_to(&broker, in_session("a", 1, "s"), "gone").await;
    publish_to(&broker, in_session("a", 2, "s"), "live").await;
    let js = async_nats::jetstream::new(async_nats::connect(&server.url).await.unwrap());
    let mut stream = js.get_stream(format!("{namespace}_WORK")).await.unwrap();
    let begun = std::time::Instant::now();
    while stream.info().await.unwrap().state.messages > 2 {
        assert!(begun.elapsed() < Duration::from_secs(30), "the anchor and the live worker's item are left");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(stream.info().await.unwrap().state.messages, 2);
}
