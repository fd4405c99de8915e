//! What a JetStream broker must stand: a server that forgets, goes back in time, is purged, restarts or is too old.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use outlast_broker::jetstream::{JetStreamBroker, JetStreamOptions};
use outlast_broker::{Broker, Control, Delivery, Dispatch, Error, Settle, ShardNotice, Withdrawal, WorkSource};
use outlast_core::{TagFilter, WorkerId};
use tokio::sync::watch;

use crate::items::{
    SOON, activity, assert_nothing, in_session, item, key, open, publish, publish_to, run, tagged, take, take_within,
    worker,
};
use crate::server::{Connects as _, Server};
use crate::world::namespace;

/// Longest time until a loss is known, beside the time that the server needs to start.
const KNOWN_WITHIN: Duration = Duration::from_secs(15);

async fn alarm(losses: &mut watch::Receiver<u64>) {
    tokio::time::timeout(KNOWN_WITHIN, losses.changed()).await.expect("the loss is known in time").unwrap();
}

/// The stream, for what operators do to it.
async fn work_stream(server: &Server, namespace: &str) -> jetstream::stream::Stream {
    let client = async_nats::connect(&server.url).await.unwrap();
    jetstream::new(client).get_stream(format!("{namespace}_WORK")).await.unwrap()
}

/// Items in the stream: one message stays at its front always.
async fn messages(stream: &mut jetstream::stream::Stream) -> u64 {
    stream.info().await.unwrap().state.messages - 1
}

/// Goal: everything works after the server lost all. Method: kill it, delete its files, start it empty; old work is gone,
/// so the alarm rises and a repeated publish is taken and delivered, to a source and by a broker that were there before.
#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_server_is_noticed_and_used_again() {
    let mut server = Server::own();
    let broker = server.broker("wipe").await;
    let (mut source, mut control) = broker.pull(worker("w", TagFilter::DefaultOnly)).await.unwrap();
    let mut losses = broker.state().losses;
    publish(&broker, item("a", 1)).await;
    publish(&broker, tagged("a", 2, "nobody")).await;
    let held = take(&mut source).await;

    server.kill();
    server.wipe();
    server.up();

    alarm(&mut losses).await;
    publish(&broker, item("a", 1)).await;
    assert_eq!(run(&mut source).await, key("a", 1));
    // An answer about a message of the lost stream must not hit one of the new stream.
    publish(&broker, item("a", 3)).await;
    let other = take(&mut source).await;
    (held.settle)(Settle::Ack);
    drop(other);
    assert_eq!(run(&mut source).await, key("a", 3));
    publish(&broker, tagged("a", 2, "nobody")).await;
    let mut late = open(&broker, "late", TagFilter::tags(["nobody"])).await;
    assert_eq!(run(&mut late).await, key("a", 2));
    broker.withdraw(Withdrawal::Activity(activity("a", 9))).await.unwrap();
    assert_eq!(tokio::time::timeout(SOON, control.recv()).await.unwrap(), Some(Control::Cancel(activity("a", 9))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_went_back_in_time_is_noticed() {
    let mut server = Server::own();
    let broker = server.broker("back").await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let mut losses = broker.state().losses;
    publish(&broker, item("a", 1)).await;
    assert_eq!(run(&mut source).await, key("a", 1));
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.stop();
    server.save();
    server.up();
    alarm(&mut losses).await;
    publish(&broker, item("a", 2)).await;
    publish(&broker, item("a", 3)).await;
    let _held = take(&mut source).await;

    server.stop();
    server.roll_back();
    server.up();

    // Two alarms keep their distance.
    alarm(&mut losses).await;
    publish(&broker, item("a", 2)).await;
    publish(&broker, item("a", 3)).await;
    let taken = [run(&mut source).await, run(&mut source).await];
    assert!(taken.contains(&key("a", 2)) && taken.contains(&key("a", 3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_loses_nothing_and_held_work_is_acknowledged_after_it() {
    let mut server = Server::own();
    let broker = server.broker("restart").await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    publish(&broker, item("a", 1)).await;
    publish(&broker, item("a", 2)).await;
    let held = take(&mut source).await;
    server.stop();
    (held.settle)(Settle::Ack);
    server.up();
    let delivery = take_within(&mut source, 2 * SOON).await.unwrap();
    assert_eq!(delivery.item.key, key("a", 2));
    (delivery.settle)(Settle::Ack);
    assert_nothing(&mut source).await;
    let mut stream = work_stream(&server, "restart").await;
    assert_eq!(messages(&mut stream).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_outlives_a_short_outage() {
    let mut server = Server::own();
    let broker = server.broker("outage").await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    server.kill();
    let publishing = publish(&broker, item("a", 1));
    let restarting = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.up();
    };
    tokio::join!(publishing, restarting);
    assert_eq!(run(&mut source).await, key("a", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_and_a_deletion_are_noticed() {
    let server = Server::any();
    let namespace = namespace();
    let broker = server.broker(&namespace).await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let mut losses = broker.state().losses;
    let queued = || publish(&broker, tagged("a", 1, "gpu"));
    queued().await;
    work_stream(&server, &namespace).await.purge().await.unwrap();
    alarm(&mut losses).await;
    queued().await;
    let client = async_nats::connect(&server.url).await.unwrap();
    jetstream::new(client).delete_stream(format!("{namespace}_WORK")).await.unwrap();
    // Two alarms keep their distance.
    alarm(&mut losses).await;
    queued().await;
    publish(&broker, item("a", 2)).await;
    assert_eq!(run(&mut source).await, key("a", 2));
    let mut gpu = open(&broker, "gpu", TagFilter::tags(["gpu"])).await;
    assert_eq!(run(&mut gpu).await, key("a", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_consumer_is_made_again() {
    let server = Server::any();
    let namespace = namespace();
    let broker = server.broker(&namespace).await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    publish(&broker, item("a", 1)).await;
    assert_eq!(run(&mut source).await, key("a", 1));
    let stream = work_stream(&server, &namespace).await;
    for consumer in ["tag-=default", "session-=default", "worker-w"] {
        stream.delete_consumer(consumer).await.unwrap();
    }
    publish(&broker, item("a", 2)).await;
    assert_eq!(run(&mut source).await, key("a", 2));
    publish_to(&broker, in_session("a", 3, "s"), "w").await;
    assert_eq!(run(&mut source).await, key("a", 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_storage_survives_nothing_and_works_again() {
    let mut server = Server::own();
    let options = JetStreamOptions { memory_storage: true, ..server.options("memory") };
    let broker = JetStreamBroker::connect(options).await.unwrap();
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let mut losses = broker.state().losses;
    publish(&broker, tagged("a", 1, "gpu")).await;
    server.stop();
    server.up();
    alarm(&mut losses).await;
    publish(&broker, tagged("a", 1, "gpu")).await;
    publish(&broker, item("a", 2)).await;
    assert_eq!(run(&mut source).await, key("a", 2));
    let mut gpu = open(&broker, "gpu", TagFilter::tags(["gpu"])).await;
    assert_eq!(run(&mut gpu).await, key("a", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_end_while_the_server_is_away() {
    let mut server = Server::own();
    let broker = server.broker("away").await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    server.kill();
    let begun = Instant::now();
    let published = broker.publish(vec![Dispatch { item: item("a", 1), worker: None, again: false }]).await;
    assert!(matches!(published, Err(Error::Unavailable(_))), "{published:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    broker.notify(outlast_core::ShardId(1), ShardNotice::Nudge("i".into()));
    broker.publish_status(&"i".into(), None, None);
    broker.withdraw(Withdrawal::Activity(activity("a", 5))).await.unwrap();
    assert!(take_within(&mut source, Duration::from_millis(300)).await.is_none());
    server.up();
    publish(&broker, item("a", 1)).await;
    assert_eq!(run(&mut source).await, key("a", 1));
}

#[tokio::test]
async fn a_held_item_is_not_given_to_others_however_long_it_runs() {
    let server = Server::any();
    let options = JetStreamOptions { ack_wait: Duration::from_millis(600), ..server.options(&namespace()) };
    let broker = JetStreamBroker::connect(options).await.unwrap();
    let mut source = open(&broker, "w1", TagFilter::DefaultOnly).await;
    publish(&broker, item("a", 1)).await;
    let held = take(&mut source).await;
    assert!(!held.redelivered);
    // Held on while the source is gone, as by a worker that is told to stop.
    drop(source);
    let mut other = open(&broker, "w2", TagFilter::DefaultOnly).await;
    let surplus = take_within(&mut other, Duration::from_secs(2)).await;
    assert!(surplus.is_none());
    (held.settle)(Settle::Ack);
    assert_nothing(&mut other).await;
}

#[tokio::test]
async fn an_item_of_a_silent_worker_goes_to_another_and_says_so() {
    let server = Server::any();
    let namespace = namespace();
    let options = JetStreamOptions { ack_wait: Duration::from_millis(600), ..server.options(&namespace) };
    let broker = JetStreamBroker::connect(options).await.unwrap();
    publish(&broker, item("a", 1)).await;
    let stream = work_stream(&server, &namespace).await;
    let consumer = stream.get_consumer::<jetstream::consumer::pull::Config>("tag-=default").await.unwrap();
    let mut batch = consumer.fetch().max_messages(1).messages().await.unwrap();
    let _never_settled = futures::StreamExt::next(&mut batch).await.unwrap().unwrap();
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let delivery = take(&mut source).await;
    assert!(delivery.redelivered);
    assert!(delivery.queued_ms >= 500 && delivery.queued_ms < 10_000, "{}", delivery.queued_ms);
}

#[tokio::test]
async fn an_item_of_a_newer_version_is_left_for_newer_nodes() {
    let server = Server::any();
    let namespace = namespace();
    let broker = server.broker(&namespace).await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let client = async_nats::connect(&server.url).await.unwrap();
    let js = jetstream::new(client);
    let subject = format!("{namespace}.work.tag.=default.newer");
    js.publish(subject, vec![200, 1, 2, 3].into()).await.unwrap().await.unwrap();
    assert_nothing(&mut source).await;
    publish(&broker, item("a", 1)).await;
    assert_eq!(run(&mut source).await, key("a", 1));
    let mut stream = work_stream(&server, &namespace).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(messages(&mut stream).await, 1);
}

#[tokio::test]
async fn an_item_that_cannot_be_read_is_taken_out() {
    let server = Server::any();
    let namespace = namespace();
    let broker = server.broker(&namespace).await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let js = jetstream::new(async_nats::connect(&server.url).await.unwrap());
    js.publish(format!("{namespace}.work.tag.=default.bad"), vec![1, 2].into()).await.unwrap().await.unwrap();
    assert_nothing(&mut source).await;
    let mut stream = work_stream(&server, &namespace).await;
    assert_eq!(messages(&mut stream).await, 0);
}

#[tokio::test]
async fn a_forwarded_item_goes_to_that_worker() {
    let server = Server::any();
    let broker = server.broker(&namespace()).await;
    let mut first = open(&broker, "w1", TagFilter::DefaultOnly).await;
    publish(&broker, in_session("a", 1, "s")).await;
    let delivery = take(&mut first).await;
    let mut holder = open(&broker, "holder", TagFilter::DefaultOnly).await;
    (delivery.settle)(Settle::Forward(WorkerId::new("holder")));
    assert_eq!(run(&mut holder).await, key("a", 1));
    assert_nothing(&mut first).await;
    assert_nothing(&mut holder).await;
}

#[tokio::test]
async fn a_worker_without_room_for_sessions_gets_none() {
    let server = Server::any();
    let broker = server.broker(&namespace()).await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    source.admit_sessions(false);
    publish(&broker, in_session("a", 1, "s")).await;
    assert_nothing(&mut source).await;
    publish(&broker, item("a", 2)).await;
    assert_eq!(run(&mut source).await, key("a", 2));
    source.admit_sessions(true);
    assert_eq!(run(&mut source).await, key("a", 1));
}

#[tokio::test]
async fn a_forgotten_worker_leaves_nothing_behind() {
    let server = Server::any();
    let namespace = namespace();
    let broker = server.broker(&namespace).await;
    let losses = broker.state().losses;
    drop(open(&broker, "dead", TagFilter::DefaultOnly).await);
    publish_to(&broker, in_session("a", 1, "s"), "dead").await;
    publish(&broker, tagged("a", 2, "gpu")).await;
    broker.withdraw(Withdrawal::Worker(WorkerId::new("dead"))).await.unwrap();
    let mut stream = work_stream(&server, &namespace).await;
    assert_eq!(messages(&mut stream).await, 1);
    assert_eq!(stream.info().await.unwrap().state.consumer_count, 2 + 1);
    assert!(!losses.has_changed().unwrap());
    // Forgotten once more.
    broker.withdraw(Withdrawal::Worker(WorkerId::new("dead"))).await.unwrap();
}

/// Nobody has to take it for that, and it is no loss that owners must make good.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_item_leaves_the_stream_in_whichever_lane_it_is() {
    let server = Server::any();
    let namespace = namespace();
    let (broker, other) = (server.broker(&namespace).await, server.broker(&namespace).await);
    let losses = other.state().losses;
    publish(&broker, tagged("a", 1, "nobody")).await;
    publish(&broker, in_session("a", 2, "s")).await;
    publish_to(&broker, in_session("a", 3, "s"), "holder").await;
    publish(&broker, item("a", 4)).await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let running = take_until(&mut source, &key("a", 4)).await;
    publish(&broker, tagged("a", 5, "nobody")).await;
    let mut stream = work_stream(&server, &namespace).await;
    for event in 1..=4 {
        broker.withdraw(Withdrawal::Activity(activity("a", event))).await.unwrap();
    }
    let begun = Instant::now();
    while messages(&mut stream).await > 1 {
        assert!(begun.elapsed() < SOON, "{} items are left", messages(&mut stream).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // That it is gone harms nobody who ran it.
    (running.settle)(Settle::Ack);
    let mut late = open(&broker, "late", TagFilter::tags(["nobody"])).await;
    assert_eq!(run(&mut late).await, key("a", 5));
    assert!(!losses.has_changed().unwrap());
}

async fn take_until(source: &mut Box<dyn WorkSource>, wanted: &outlast_core::ActivityKey) -> Delivery {
    loop {
        let delivery = take(source).await;
        if delivery.item.key == *wanted {
            return delivery;
        }
    }
}

/// An owner of an older version names no life, so its word is a reason to ask and no more.
#[tokio::test]
async fn a_cancellation_without_a_token_is_a_reason_to_ask() {
    let server = Server::any();
    let namespace = namespace();
    let broker = server.broker(&namespace).await;
    let (_source, mut control) = broker.pull(worker("w", TagFilter::DefaultOnly)).await.unwrap();
    let client = async_nats::connect(&server.url).await.unwrap();
    let old = outlast_core::encode(&std::collections::BTreeMap::from([("key", key("a", 1))]));
    let heard = async {
        loop {
            client.publish(format!("{namespace}.control.cancel"), old.clone().into()).await.unwrap();
            if let Ok(heard) = tokio::time::timeout(Duration::from_millis(200), control.recv()).await {
                return heard;
            }
        }
    };
    let heard = tokio::time::timeout(SOON, heard).await.unwrap();
    assert_eq!(heard, Some(Control::Check(key("a", 1))));
}

#[tokio::test]
async fn namespaces_do_not_see_each_other() {
    let server = Server::any();
    let (one, two) = (server.broker(&namespace()).await, server.broker(&namespace()).await);
    let mut source = open(&one, "w", TagFilter::Any).await;
    let (mut other, mut control) = two.pull(worker("w", TagFilter::Any)).await.unwrap();
    publish(&one, item("a", 1)).await;
    one.withdraw(Withdrawal::Activity(activity("a", 7))).await.unwrap();
    assert_eq!(run(&mut source).await, key("a", 1));
    assert_nothing(&mut other).await;
    assert!(control.try_recv().is_err());
}

#[tokio::test]
async fn namespaces_and_addresses_are_checked() {
    for namespace in ["", "a.b", "a*", "a b", "a>", &"x".repeat(65)] {
        let options =
            JetStreamOptions { namespace: namespace.to_owned(), ..JetStreamOptions::new("nats://127.0.0.1:1") };
        let refused = JetStreamBroker::connect(options).await.err();
        assert!(matches!(refused, Some(Error::Unusable(_))), "{namespace:?} {refused:?}");
    }
    let away = JetStreamBroker::connect(JetStreamOptions::new("nats://127.0.0.1:1")).await.err();
    assert!(matches!(away, Some(Error::Unavailable(_))), "{away:?}");
}

#[tokio::test]
async fn consumers_of_unused_tags_are_deleted_when_no_work_waits() {
    let server = Server::any();
    let namespace = namespace();
    let options = JetStreamOptions { unused_tag_kept: Duration::from_secs(1), ..server.options(&namespace) };
    let broker = JetStreamBroker::connect(options).await.unwrap();
    let mut source = open(&broker, "w", TagFilter::tags(["used"])).await;
    publish(&broker, tagged("a", 1, "waiting")).await;
    publish(&broker, tagged("a", 2, "unused")).await;
    let mut unused = open(&broker, "w2", TagFilter::tags(["unused"])).await;
    assert_eq!(run(&mut unused).await, key("a", 2));
    drop(unused);
    let stream = work_stream(&server, &namespace).await;
    let names = || async {
        let mut names: Vec<String> = futures::TryStreamExt::try_collect(stream.consumer_names()).await.unwrap();
        names.retain(|name| name.starts_with("tag-"));
        names.sort();
        names
    };
    let begun = Instant::now();
    while names().await != ["tag-used", "tag-waiting"] {
        assert!(begun.elapsed() < SOON, "{:?}", names().await);
        assert!(take_within(&mut source, Duration::from_millis(100)).await.is_none());
    }
    // Published while the sweep that has deleted its consumer is still under way, it gets another one at the end of that.
    publish(&broker, tagged("a", 3, "unused")).await;
    let begun = Instant::now();
    while names().await != ["tag-unused", "tag-used", "tag-waiting"] {
        assert!(begun.elapsed() < SOON, "{:?}", names().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A stream that somebody made in another way is not used.
#[tokio::test]
async fn a_stream_with_other_options_is_refused() {
    let server = Server::any();
    let namespace = namespace();
    let js = jetstream::new(async_nats::connect(&server.url).await.unwrap());
    let subjects = vec![format!("{namespace}.work.>")];
    let config = jetstream::stream::Config { name: format!("{namespace}_WORK"), subjects, ..Default::default() };
    js.create_stream(config).await.unwrap();
    let refused = JetStreamBroker::connect(server.options(&namespace)).await.err();
    assert!(matches!(refused, Some(Error::Unusable(_))), "{refused:?}");
}

/// Speaks as much as is needed for a client to connect and to read the version.
#[tokio::test]
async fn an_old_server_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let info = r#"{"server_id":"X","server_name":"X","version":"2.9.10","host":"127.0.0.1","port":1,"headers":true,"max_payload":1048576,"jetstream":true,"proto":1}"#;
        write!(stream, "INFO {info}\r\n").unwrap();
        for line in BufReader::new(stream.try_clone().unwrap()).lines() {
            if line.is_ok_and(|line| line.starts_with("PING")) {
                stream.write_all(b"PONG\r\n").unwrap();
            }
        }
    });
    let options = JetStreamOptions::new(format!("nats://127.0.0.1:{port}"));
    let refused = JetStreamBroker::connect(options).await.err().expect("it is refused");
    assert!(matches!(&refused, Error::Unusable(why) if why.contains("2.9.10") && why.contains("2.12")), "{refused:?}");
}
