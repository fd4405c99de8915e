//! Consumers that somebody has edited, deleted, or made in another way: each kind of them, in each way that would let an item lie.

use std::time::Duration;

use async_nats::jetstream::consumer::{self, IntoConsumerConfig as _};
use async_nats::jetstream::{self, stream::Stream};
use outlast_broker::jetstream::JetStreamBroker;
use outlast_broker::{Broker, Dispatch, Settle, WorkSource};
use outlast_core::{TagFilter, WorkerId};
use outlast_test_support::copy_tree;

use crate::half_alive::{MENDED_WITHIN, js, offer_until_taken, until};
use crate::items::{in_session, item, key, open, take};
use crate::server::{Connects as _, Server};
use crate::world::namespace;

/// A consumer, and how an item comes to it.
struct Queue {
    consumer: &'static str,
    dispatch: fn(u64) -> Dispatch,
}

const QUEUES: [Queue; 3] = [
    Queue { consumer: "tag-=default", dispatch: |n| Dispatch { item: item("a", n), worker: None, again: true } },
    Queue {
        consumer: "session-=default",
        dispatch: |n| Dispatch { item: in_session("a", n, &n.to_string()), worker: None, again: true },
    },
    Queue {
        consumer: "worker-w",
        dispatch: |n| Dispatch { item: in_session("a", n, "s"), worker: Some(WorkerId::new("w")), again: true },
    },
];

struct World {
    namespace: String,
    js: jetstream::Context,
    broker: JetStreamBroker,
    source: Box<dyn WorkSource>,
    stream: Stream,
    offered: u64,
}

impl World {
    async fn new(server: &Server) -> Self {
        let (namespace, js) = (namespace(), js(server).await);
        let broker = server.broker(&namespace).await;
        let source = open(&broker, "w", TagFilter::DefaultOnly).await;
        let stream = js.get_stream(format!("{namespace}_WORK")).await.unwrap();
        Self { namespace, js, broker, source, stream, offered: 0 }
    }

    async fn config(&self, queue: &Queue) -> consumer::Config {
        self.stream.consumer_info(queue.consumer).await.unwrap().config
    }

    /// An item that is offered from now on is delivered; those before it may come again, as their acknowledgements may be lost.
    async fn delivers(&mut self, queue: &Queue) {
        self.offered += 1;
        offer_until_taken(&self.broker, vec![(queue.dispatch)(self.offered)], 2 * MENDED_WITHIN).await;
        let comes = async {
            loop {
                let delivery = take(&mut self.source).await;
                (delivery.settle)(Settle::Ack);
                if delivery.item.key == key("a", self.offered) {
                    return;
                }
            }
        };
        tokio::time::timeout(2 * MENDED_WITHIN, comes).await.expect("it comes");
    }

    /// Puts a consumer of another making in the place of ours, which is made again as soon as it is missed.
    async fn replace(&self, queue: &Queue, foreign: consumer::Config) {
        until("the foreign one is there", async || {
            let _gone = self.stream.delete_consumer(queue.consumer).await;
            let stream = format!("{}_WORK", self.namespace);
            self.js.create_consumer_strict_on_stream(foreign.clone(), stream).await.is_ok()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_consumer_is_set_right() {
    let server = Server::any();
    // Side by side, as each edit waits for the next look.
    let edited = QUEUES.iter().map(async |queue| {
        let mut world = World::new(&server).await;
        world.delivers(queue).await;
        let before = world.config(queue).await;
        let edits: [fn(&mut consumer::Config); 4] = [
            |config| {
                let elsewhere =
                    config.filter_subject.replace(".=default.", ".elsewhere.").replace(".w.", ".elsewhere.");
                config.filter_subject = elsewhere;
            },
            |config| (config.max_deliver, config.max_ack_pending) = (1, 1),
            |config| config.max_expires = Duration::from_millis(1),
            |config| config.inactive_threshold = Duration::from_secs(60),
        ];
        for edit in edits {
            let mut edited = before.clone();
            edit(&mut edited);
            world.js.create_consumer_on_stream(edited, format!("{}_WORK", world.namespace)).await.unwrap();
            until("the consumer is as it was", async || world.config(queue).await == before).await;
            world.delivers(queue).await;
        }
        let told = world.broker.state().troubles;
        assert!(told.iter().any(|trouble| trouble.reason.contains(queue.consumer)), "{told:?}");
    });
    futures::future::join_all(edited).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_consumer_is_made_again() {
    let server = Server::any();
    for queue in &QUEUES {
        let mut world = World::new(&server).await;
        world.delivers(queue).await;
        world.stream.delete_consumer(queue.consumer).await.unwrap();
        world.delivers(queue).await;
    }
}

/// One that somebody made in another way under its name.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_consumer_gives_way() {
    let server = Server::any();
    for queue in &QUEUES {
        let mut world = World::new(&server).await;
        let filter_subject = world.config(queue).await.filter_subject;
        let foreign = consumer::push::Config {
            durable_name: Some(queue.consumer.to_owned()),
            deliver_subject: "nowhere".to_owned(),
            filter_subject,
            ..Default::default()
        };
        world.replace(queue, foreign.into_consumer_config()).await;
        world.delivers(queue).await;
    }
}

/// The messages of the stream alone are set back: what comes next has numbers that the consumer has passed.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_ahead_of_its_stream_is_made_anew() {
    for queue in &QUEUES {
        let mut server = Server::own();
        let mut world = World::new(&server).await;
        world.delivers(queue).await;
        let saved = tempfile::tempdir().unwrap();
        let (messages, saved) =
            (format!("jetstream/$G/streams/{}_WORK/msgs", world.namespace), saved.path().join("msgs"));
        let messages = server.store().join(messages);
        server.stop();
        copy_tree(&messages, &saved);
        server.up();
        for _ in 0..20 {
            world.delivers(queue).await;
        }
        server.stop();
        copy_tree(&saved, &messages);
        server.up();
        world.delivers(queue).await;
    }
}
