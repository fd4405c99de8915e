//! A cancellation is a fact: whatever is away when it is made, what runs hears of it, and what has not begun does not begin.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast::runtime::Runtime;
use outlast::{ActivityContext, ActivityRegistry, Client, OrchestrationRegistry, OrchestrationStatus, RuntimeOptions};
use outlast_test_support::NatsServer;
use tokio::sync::Notify;

use crate::node::{Cluster, LEASE, Node, PATIENCE, Role};

/// By then a running activity has been told, counted from when everything is there again.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// What the activities of a worker in this process have met, by their input.
#[derive(Clone, Default)]
struct Seen {
    begun: Arc<Mutex<Vec<String>>>,
    told: Arc<Mutex<Vec<String>>>,
    let_go: Arc<Notify>,
}

impl Seen {
    /// A worker for the orchestration `Hold` of [`crate::node`]: its activity runs until it is told to stop or let go.
    async fn worker(&self, cluster: &Cluster, slots: usize) -> Arc<Runtime> {
        let seen = self.clone();
        let hold = move |ctx: ActivityContext, input: String| {
            let seen = seen.clone();
            async move {
                seen.begun.lock().unwrap().push(input.clone());
                tokio::select! {
                    () = ctx.cancelled() => seen.told.lock().unwrap().push(input),
                    () = seen.let_go.notified() => {}
                }
                Ok(String::new())
            }
        };
        let activities = ActivityRegistry::builder().register("UntilCancelled", hold).build();
        let options = RuntimeOptions { worker_concurrency: slots, ..RuntimeOptions::default() };
        let none = OrchestrationRegistry::default();
        Runtime::start_with_options(cluster.provider().await, activities, none, options).await
    }

    async fn until(list: &Mutex<Vec<String>>, input: &str, limit: Duration) {
        let wait = async {
            while !list.lock().unwrap().iter().any(|other| other == input) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(limit, wait).await;
        assert!(waited.is_ok(), "{input} is not among {:?}", list.lock().unwrap());
    }

    async fn until_begun(&self, input: &str) {
        Self::until(&self.begun, input, PATIENCE).await;
    }

    async fn until_told(&self, input: &str) {
        Self::until(&self.told, input, TOLD_WITHIN).await;
    }

    fn has_begun(&self, input: &str) -> bool {
        self.begun.lock().unwrap().iter().any(|other| other == input)
    }
}

/// A cluster with a broker of its own, and an orchestrator that may be killed.
async fn breakable() -> (NatsServer, Cluster, Node, Client) {
    let nats = NatsServer::own();
    let cluster = Cluster::on(&Cluster::shared().postgres, &nats.url);
    let owner = cluster.process(Role::Orchestrator);
    let client = cluster.client().await;
    (nats, cluster, owner, client)
}

async fn hold(client: &Client, id: &str, input: &str) {
    client.start_orchestration(id, "Hold", input).await.unwrap();
}

/// It ends although nobody can be told of it.
async fn cancel(client: &Client, id: &str) {
    client.cancel_instance(id, "enough").await.unwrap();
    let status = client.wait_for_orchestration(id, PATIENCE).await.unwrap();
    assert!(matches!(status, OrchestrationStatus::Failed { .. }), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cancelled_while_the_broker_was_away_leaves_the_next_life_alone() {
    let (mut nats, cluster, _owner, client) = breakable().await;
    let seen = Seen::default();
    let worker = seen.worker(&cluster, 4).await;
    hold(&client, "i", "first").await;
    seen.until_begun("first").await;
    nats.kill();
    cancel(&client, "i").await;
    client.delete_instance("i", false).await.unwrap();
    hold(&client, "i", "second").await;
    nats.up();
    seen.until_told("first").await;
    seen.until_begun("second").await;
    // By then whatever was still to be said has been said, and asked.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!seen.told.lock().unwrap().contains(&"second".to_owned()));
    cancel(&client, "i").await;
    seen.until_told("second").await;
    worker.shutdown(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_told_although_the_owner_died_before_it_could_tell() {
    let (mut nats, cluster, mut owner, client) = breakable().await;
    let seen = Seen::default();
    let worker = seen.worker(&cluster, 4).await;
    hold(&client, "i", "one").await;
    seen.until_begun("one").await;
    nats.kill();
    cancel(&client, "i").await;
    owner.kill();
    nats.up();
    let _next = cluster.process(Role::Orchestrator);
    // The healing is over when the shards have an owner again.
    hold(&client, "j", "two").await;
    seen.until_begun("two").await;
    seen.until_told("one").await;
    worker.shutdown(None).await;
}

/// The worker hears nothing for a while, and the broker remembers nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_away_is_told_although_the_broker_was_restarted() {
    let (mut nats, cluster, _owner, client) = breakable().await;
    let worker = cluster.process(Role::Worker);
    client.start_orchestration("witness", "Witness", "").await.unwrap();
    hold(&client, "i", "witness").await;
    client.wait_for_status_change("witness", 0, Duration::from_millis(200), PATIENCE).await.unwrap();
    worker.signal("-STOP");
    cancel(&client, "i").await;
    nats.kill();
    nats.wipe();
    nats.up();
    worker.signal("-CONT");
    let status = client.wait_for_orchestration("witness", TOLD_WITHIN).await.unwrap();
    assert!(matches!(status, OrchestrationStatus::Completed { .. }), "{status:?}");
}

/// Goal: what waits behind others when its instance ends does not begin. Method: a worker with one slot that is taken; the broker
/// and the owner die so that nobody says a word of the end, and the count of deliveries is lost with the consumers.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_does_not_begin_whatever_was_lost() {
    let (mut nats, cluster, mut owner, client) = breakable().await;
    let seen = Seen::default();
    let worker = seen.worker(&cluster, 1).await;
    hold(&client, "busy", "busy").await;
    seen.until_begun("busy").await;
    hold(&client, "i", "ended").await;
    hold(&client, "d", "deleted").await;
    // The orchestrator has handed them out.
    for id in ["i", "d"] {
        while client.read_execution_history(id, 1).await.unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    nats.kill();
    cancel(&client, "i").await;
    client.delete_instance("d", true).await.unwrap();
    owner.kill();
    nats.up();
    let js = async_nats::jetstream::new(async_nats::connect(&cluster.nats).await.unwrap());
    let stream = js.get_stream(format!("{}_WORK", cluster.namespace)).await.unwrap();
    stream.delete_consumer("tag-=default").await.unwrap();
    let _next = cluster.process(Role::Orchestrator);
    hold(&client, "k", "wanted").await;
    seen.let_go.notify_one();
    seen.until_begun("wanted").await;
    seen.let_go.notify_one();
    client.wait_for_orchestration("k", PATIENCE).await.unwrap();
    assert!(!seen.has_begun("ended") && !seen.has_begun("deleted"), "{:?}", seen.begun.lock().unwrap());
    worker.shutdown(None).await;
}

/// While nobody can say whether what comes first is wanted, others go on.
#[tokio::test(flavor = "multi_thread")]
async fn work_whose_owner_is_silent_takes_no_slot_for_long() {
    // Until then nobody takes the silent one's shards.
    let cluster = Cluster { lease: Duration::from_secs(16), ..Cluster::shared() };
    let owners = [cluster.process(Role::Orchestrator), cluster.process(Role::Orchestrator)];
    let client = cluster.client().await;
    let seen = Seen::default();
    // Both have their shards.
    tokio::time::sleep(Duration::from_secs(9)).await;
    for number in 0..40 {
        hold(&client, &format!("i{number}"), &format!("{number}")).await;
    }
    for number in 0..40 {
        while client.read_execution_history(&format!("i{number}"), 1).await.unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    owners[0].signal("-STOP");
    let worker = seen.worker(&cluster, 2).await;
    let done = async {
        while seen.begun.lock().unwrap().len() < 8 {
            seen.let_go.notify_waiters();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(11), done).await;
    assert!(done.is_ok(), "{:?}", seen.begun.lock().unwrap());
    owners[0].signal("-CONT");
    worker.shutdown(Some(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_deletion_leaves_nothing_in_the_stream() {
    let cluster = Cluster::shared();
    let _owner = cluster.process(Role::Orchestrator);
    let client = cluster.client().await;
    let seen = Seen::default();
    let worker = seen.worker(&cluster, 1).await;
    hold(&client, "busy", "busy").await;
    seen.until_begun("busy").await;
    hold(&client, "waits", "waits").await;
    let js = async_nats::jetstream::new(async_nats::connect(&cluster.nats).await.unwrap());
    let mut stream = js.get_stream(format!("{}_WORK", cluster.namespace)).await.unwrap();
    // Nobody takes the message at its front.
    let mut until = async |count: u64| {
        while stream.info().await.unwrap().state.messages != count + 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, until(2)).await.unwrap();
    client.delete_instance("waits", true).await.unwrap();
    tokio::time::timeout(TOLD_WITHIN, until(1)).await.unwrap();
    client.delete_instance("busy", true).await.unwrap();
    seen.until_told("busy").await;
    tokio::time::timeout(TOLD_WITHIN, until(0)).await.unwrap();
    tokio::time::sleep(LEASE).await;
    assert!(!seen.has_begun("waits"));
    worker.shutdown(None).await;
}
