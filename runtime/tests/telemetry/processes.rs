//! Goal: an instance is one trace and every number is told, whatever process made it and whoever is killed meanwhile.
//! Method: a client, orchestrators and workers are processes of their own, on a Postgres and a nats-server of the test's own;
//! the test is their collector, their prober and their scraper. Nothing stays warm, so every turn replays. The first
//! orchestrator is killed while the order waits, the first worker while it ships.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use outlast::{Client, OrchestrationStatus};
use outlast_test_support::{NatsServer, PostgresServer};

use crate::collector::{PATIENCE, Received, Scrape, Trace, collector, get, until};
use crate::node::{Cluster, Node};

/// How the names of turns begin.
const TURN: &str = "orchestration turn ";

/// A test under way.
struct World {
    postgres: PostgresServer,
    nats: NatsServer,
    cluster: Cluster,
    client: Client,
    received: Arc<Received>,
    /// One scrape of each process, as late as it can be.
    scrapes: Vec<Scrape>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_trace_through_three_processes_two_of_which_are_killed() {
    let mut world = World::start().await;
    let (mut orchestrator, first) = world.node("orchestrator").await;
    let (mut stuck, first_worker) = world.node("stuck-worker").await;
    world.cluster.process("client", "Order").wait();
    let turns = world.order_waits(first).await;
    orchestrator.kill();

    let (mut orchestrator, second) = world.node("orchestrator").await;
    world.client.raise_event("Order", "packed", "").await.unwrap();
    world.worker_ships(first_worker).await;
    stuck.kill();
    let (mut worker, second_worker) = world.node("worker").await;
    let status = world.client.wait_for_orchestration("Order", PATIENCE).await.unwrap();
    assert!(matches!(&status, OrchestrationStatus::Completed { output, .. } if output == "shipped"), "{status:?}");
    world.order_ends(second, second_worker).await;

    world.check_readiness([second, second_worker]).await;
    world.drain_worker(&mut worker, second_worker).await;
    let last = Scrape::of(second).await;
    let turns = turns + last.value("outlast_turns_total");
    world.scrapes.push(last);
    orchestrator.tell_to_end();
    orchestrator.wait();
    world.check_table();
    // Every process has exported all it had to say.
    world.check_traces(turns as usize);
}

impl World {
    async fn start() -> Self {
        let (collector, received) = collector().await;
        let (postgres, nats) = (PostgresServer::trusting(), NatsServer::own());
        let namespace = format!("t{}", UNIX_EPOCH.elapsed().unwrap().as_nanos());
        let cluster = Cluster { postgres: postgres.url.clone(), nats: nats.url.clone(), namespace, collector };
        let client = cluster.client().await;
        Self { postgres, nats, cluster, client, received, scrapes: Vec::new() }
    }

    /// A new process, live and ready, and its address.
    async fn node(&self, role: &str) -> (Node, SocketAddr) {
        let mut node = self.cluster.process(role, "-");
        let address = node.address();
        assert_eq!(get(address, "/livez").await, (200, "ok".to_owned()));
        ready(address).await;
        (node, address)
    }

    /// How many spans have come whose names begin so.
    fn spans(&self, name: &str) -> usize {
        let spans = self.received.spans.lock().unwrap();
        spans.iter().filter(|exported| exported.span.name.starts_with(name)).count()
    }

    /// Until nothing happens any more and all of it is told; how many turns there were.
    async fn order_waits(&mut self, orchestrator: SocketAddr) -> f64 {
        until("the order waits", async || {
            let status = self.client.get_orchestration_status("Order").await.unwrap();
            let waits = |custom: &Option<String>| custom.as_ref().is_some_and(|custom| custom.contains("charged"));
            matches!(&status, OrchestrationStatus::Running { custom_status, .. } if waits(custom_status)).then_some(())
        })
        .await;
        let scrape = until("all instances are passivated", async || {
            let scrape = Scrape::of(orchestrator).await;
            (scrape.value("outlast_warm_instances") == 0.0).then_some(scrape)
        })
        .await;
        let turns = scrape.value("outlast_turns_total");
        until("spans of all turns and of both attempts", async || {
            (self.spans(TURN) >= turns as usize && self.spans("activity ") >= 2).then_some(())
        })
        .await;
        check_commits(&scrape);
        assert_eq!(scrape.value("outlast_activities_dispatched_total{tag=\"=default\"}"), 2.0);
        assert_eq!(scrape.value("outlast_activity_retries_total{activity=\"Charge\"}"), 1.0);
        self.scrapes.push(scrape);
        turns
    }

    /// Until the worker has begun the shipment.
    async fn worker_ships(&mut self, worker: SocketAddr) {
        let scrape = until("the worker ships", async || {
            let scrape = Scrape::of(worker).await;
            scrape.get("outlast_queue_wait_seconds_count{tag=\"dock\"}").is_some().then_some(scrape)
        })
        .await;
        for (tag, count) in [("=default", 2.0), ("dock", 1.0)] {
            assert_eq!(scrape.value(&format!("outlast_queue_wait_seconds_count{{tag=\"{tag}\"}}")), count);
            let waited = scrape.value(&format!("outlast_queue_wait_seconds_sum{{tag=\"{tag}\"}}"));
            assert!((0.0..PATIENCE.as_secs_f64()).contains(&waited), "{waited} s in the queue of {tag}");
        }
        assert_eq!(scrape.value("outlast_activity_duration_seconds_count{activity=\"Charge\"}"), 2.0);
        assert_eq!(scrape.get("outlast_activity_duration_seconds_count{activity=\"Ship\"}"), None);
        assert_eq!(scrape.value("outlast_turns_total"), 0.0);
        self.scrapes.push(scrape);
    }

    /// What the successors of the killed ones say.
    async fn order_ends(&self, orchestrator: SocketAddr, worker: SocketAddr) {
        let scrape = until("all instances are passivated", async || {
            let scrape = Scrape::of(orchestrator).await;
            (scrape.value("outlast_warm_instances") == 0.0).then_some(scrape)
        })
        .await;
        check_commits(&scrape);
        assert_eq!(scrape.value("outlast_activities_dispatched_total{tag=\"dock\"}"), 1.0);
        let worker = Scrape::of(worker).await;
        assert_eq!(worker.value("outlast_redispatches_total{tag=\"dock\"}"), 1.0);
        assert_eq!(worker.value("outlast_activity_duration_seconds_count{activity=\"Ship\"}"), 1.0);
    }

    /// A node is live whatever its servers do, and ready while they are there.
    async fn check_readiness(&mut self, nodes: [SocketAddr; 2]) {
        self.postgres.stop_immediately();
        for node in nodes {
            not_ready(node, "the lease is lost").await;
        }
        self.postgres.up();
        for node in nodes {
            ready(node).await;
        }
        self.nats.kill();
        for node in nodes {
            not_ready(node, "the broker is not connected").await;
        }
        self.nats.up();
        for node in nodes {
            ready(node).await;
        }
    }

    /// A worker that is told to end is not ready, and ends when its last activity has.
    async fn drain_worker(&mut self, worker: &mut Node, address: SocketAddr) {
        self.cluster.process("client", "Parcel").wait();
        let scrape = until("the parcel is being packed", async || {
            let scrape = Scrape::of(address).await;
            scrape.get("outlast_queue_wait_seconds_count{tag=\"=default\"}").is_some().then_some(scrape)
        })
        .await;
        self.scrapes.push(scrape);
        worker.tell_to_end();
        not_ready(address, "the node is stopping").await;
        worker.wait();
        let status = self.client.wait_for_orchestration("Parcel", PATIENCE).await.unwrap();
        assert!(matches!(&status, OrchestrationStatus::Completed { output, .. } if output == "packed"), "{status:?}");
    }

    /// Every metric that the documentation names is scraped as what it says, and exported.
    fn check_table(&self) {
        let table = include_str!("../../../deploy/README.md");
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `outlast_"));
        let rows: BTreeMap<_, _> = rows
            .map(|row| {
                let (name, rest) = row.split_once("` | ").unwrap();
                (format!("outlast_{name}"), rest.split_once(" |").unwrap().0)
            })
            .collect();
        let scraped: BTreeMap<_, _> = self.scrapes.iter().flat_map(|scrape| &scrape.kinds).collect();
        let ours = scraped.iter().filter(|(name, _)| name.starts_with("outlast_"));
        let ours: BTreeMap<_, _> = ours.map(|(name, kind)| ((*name).clone(), &kind[..])).collect();
        assert_eq!(ours, rows);
        let exported = self.received.metrics.lock().unwrap();
        for service in ["orchestrator", "worker"] {
            let names = exported.iter().filter(|(from, _)| from == service).map(|(_, name)| &name[..]);
            let names: BTreeSet<_> = names.collect();
            assert!(names.contains("outlast.warm_instances") && names.contains("outlast.turns"), "{names:?}");
            assert!(names.iter().all(|name| name.starts_with("outlast.")), "{names:?}");
        }
        let names: BTreeSet<_> = exported.iter().map(|(_, name)| name).collect();
        assert_eq!(names.len(), rows.len(), "{names:?}");
    }

    /// Two instances, two traces, and nothing else.
    fn check_traces(&self, turns: usize) {
        let mut traces = BTreeMap::<_, Vec<_>>::new();
        for exported in &*self.received.spans.lock().unwrap() {
            traces.entry(exported.span.trace_id.clone()).or_default().push(exported.clone());
        }
        let is_order = |spans: &Vec<crate::collector::Exported>| {
            spans.iter().any(|exported| exported.span.name == "start orchestration Order")
        };
        let (orders, parcels): (Vec<_>, Vec<_>) = traces.into_values().partition(is_order);
        assert_eq!((orders.len(), parcels.len()), (1, 1), "{parcels:#?}");
        let (order, parcel) =
            (Trace(orders.into_iter().flatten().collect()), Trace(parcels.into_iter().flatten().collect()));
        parcel.check("Parcel");
        order.check("Order");
        let expected = [("Charge", "1"), ("Charge", "2"), ("Ship", "1")];
        assert_eq!(order.attempts(), expected.map(|(name, attempt)| (name.to_owned(), attempt.to_owned())));
        // One turn for each message and timer: start, failure, timer, success, then "packed", the child's two, its outcome.
        assert_eq!(order.0.len(), 1 + 1 + 8 + 3, "{:?}", order.names());
        // The first commit after the outage may meet a dead connection; then there is a span that says so.
        let (lost, kept): (Vec<_>, Vec<_>) =
            parcel.named(TURN).into_iter().partition(|turn| turn.span.status.as_ref().is_some_and(|s| s.code == 2));
        assert!(lost.iter().all(|turn| turn.span.status.as_ref().unwrap().message == "not committed"));
        assert_eq!(parcel.0.len(), 1 + 1 + lost.len() + kept.len() + 1, "{:?}", parcel.names());
        assert_eq!(order.named(TURN).len() + kept.len(), turns);

        let made_by = |name: &str| {
            let spans = order.named(name);
            let services: BTreeSet<_> = spans.iter().map(|exported| &exported.service[..]).collect();
            let processes: BTreeSet<_> = spans.iter().map(|exported| &exported.process[..]).collect();
            (services.into_iter().collect::<Vec<_>>().join(" "), processes.len())
        };
        assert_eq!(made_by("request"), ("client".to_owned(), 1));
        assert_eq!(made_by("start orchestration "), ("client".to_owned(), 1));
        // The killed one and its successor.
        assert_eq!(made_by("orchestration turn Order"), ("orchestrator".to_owned(), 2));
        assert_eq!(made_by("orchestration turn Deliver"), ("orchestrator".to_owned(), 1));
        assert_eq!(made_by("activity "), ("worker".to_owned(), 2));
    }
}

fn check_commits(orchestrator: &Scrape) {
    let turns = orchestrator.value("outlast_turns_total");
    assert!(turns >= 3.0, "{turns} turns");
    assert_eq!(orchestrator.value("outlast_commit_group_size_sum"), turns);
    let commits = orchestrator.value("outlast_commit_duration_seconds_count");
    assert_eq!(orchestrator.value("outlast_commit_group_size_count"), commits);
    assert!(commits >= 1.0 && orchestrator.value("outlast_commit_duration_seconds_sum") > 0.0);
    assert_eq!(orchestrator.value("outlast_shard_moves_total"), 64.0);
    assert_eq!(orchestrator.value("outlast_mailbox_depth"), 0.0);
}

/// Waits until the node can be given work.
async fn ready(node: SocketAddr) {
    until("the node is ready", async || (get(node, "/readyz").await.0 == 200).then_some(())).await;
}

/// Waits until it cannot, for this reason: on a busy machine another one may come before it. It is live all the time.
async fn not_ready(node: SocketAddr, why: &str) {
    until(why, async || {
        assert_eq!(get(node, "/livez").await, (200, "ok".to_owned()));
        (get(node, "/readyz").await == (503, why.to_owned())).then_some(())
    })
    .await;
}
