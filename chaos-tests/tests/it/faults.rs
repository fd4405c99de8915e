//! What the simulated store does to its callers, on virtual time.

use std::time::Duration;

use outlast_chaos_tests::store::{Faults, Options, SimulatedServer, SimulatedStore};
use outlast_core::{InboxSeq, InstanceId, Millis, ShardId};
use outlast_storage::{
    CallStore as _, Error, InboxCursor, InspectStore as _, LeaseStore as _, SendOptions, StartConflict, StartRequest,
    TurnOutcome, TurnStore as _,
};
use tokio::time::{Instant, sleep};

use crate::fixture::{Owner, commit_one, id, is_committed, join, raise, start, start_message, status_updated};

const LEASE: Duration = Duration::from_secs(5);

fn request(name: &str) -> StartRequest {
    let message = start_message(&format!("start {name}"), "orchestration");
    StartRequest { instance: id(name), message, on_conflict: StartConflict::UseExisting }
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_was_not_done_and_a_lost_answer_was() {
    let server = SimulatedServer::new(Options::default());
    let store = server.connect();
    server.set_faults(Faults { lost: 1_000, ..Faults::default() });
    assert!(matches!(store.start(request("lost")).await, Err(Error::Unavailable(_))));
    server.set_faults(Faults { answers_lost: 1_000, ..Faults::default() });
    assert!(matches!(store.start(request("done")).await, Err(Error::Unavailable(_))));
    server.set_faults(Faults::default());
    assert_eq!(store.list(None).await.unwrap(), ["done"]);
    assert_eq!((server.hits().lost, server.hits().answers_lost), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_on_virtual_time_and_the_late_commit_is_fenced() {
    let server = SimulatedServer::new(Options { lease: LEASE, ..Options::default() });
    let (zombie, successor) = (server.connect(), server.connect());
    let owner = Owner::of_all(&zombie).await;
    start(&zombie, "a").await;
    let other = join(&successor, "other").await;
    let turn = owner.turn(&zombie, "a", vec![status_updated("late")]).await;
    let all: Vec<ShardId> = (0..successor.shards()).map(ShardId).collect();
    let begun = Instant::now();
    let take_over = async {
        loop {
            sleep(LEASE / 4).await;
            successor.renew(&other).await.unwrap();
            let taken = successor.acquire(&other, &all).await.unwrap();
            if !taken.is_empty() {
                return (taken.len(), begun.elapsed());
            }
        }
    };
    let (taken, after) = take_over.await;
    assert_eq!(taken, all.len());
    assert!(after > LEASE && after <= LEASE * 2, "{after:?}");
    assert!(matches!(commit_one(&zombie, turn).await, TurnOutcome::Fenced));
}

#[tokio::test(start_paused = true)]
async fn what_a_cut_node_has_sent_happens_and_nobody_hears_of_it() {
    let server = SimulatedServer::new(Options::default());
    let (node, other) = (server.connect(), server.connect());
    server.set_faults(Faults { delayed: 1_000, delay_max: LEASE, ..Faults::default() });
    let call = node.start(request("a"));
    let cut = async {
        tokio::task::yield_now().await;
        node.cut();
    };
    let (started, ()) = tokio::join!(call, cut);
    assert!(matches!(started, Err(Error::Unavailable(_))), "{started:?}");
    assert!(other.state(&id("a")).await.unwrap().is_some());
    assert!(matches!(node.state(&id("a")).await, Err(Error::Unavailable(_))));
}

/// Sends `count` messages at once, and reads on until all have come; the numbers in the order in which they were first seen.
async fn read_on(store: &SimulatedStore, instance: &InstanceId, count: usize) -> Vec<InboxSeq> {
    let sends = (0..count).map(|number| {
        let message = raise(&format!("m{number}"));
        async move { store.send(instance, message, SendOptions::first_try(100)).await.unwrap() }
    });
    let reads = async {
        let (mut cursor, mut seen) = (InboxCursor::default(), Vec::new());
        // Everything is visible after a second.
        for _ in 0..200 {
            let (rows, next) = store.inbox(instance, cursor).await.unwrap();
            cursor = next;
            for seq in rows.iter().filter_map(|row| row.seq) {
                if !seen.contains(&seq) {
                    seen.push(seq);
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
        seen
    };
    tokio::join!(futures::future::join_all(sends), reads).1
}

#[tokio::test(start_paused = true)]
async fn rows_become_visible_out_of_order_and_reading_on_misses_none() {
    let mut out_of_order = 0;
    for seed in 0..20 {
        let server = SimulatedServer::new(Options { seed, ..Options::default() });
        let store = server.connect();
        start(&store, "a").await;
        server.set_faults(Faults { delayed: 700, delay_max: Duration::from_secs(1), ..Faults::default() });
        let seen = read_on(&store, &id("a"), 8).await;
        assert_eq!(seen.len(), 9, "seed {seed}: reading on has missed rows");
        out_of_order += usize::from(!seen.is_sorted());
    }
    assert!(out_of_order > 0, "all rows became visible in the order of their numbers");
}

#[tokio::test(start_paused = true)]
async fn an_old_answer_is_older_than_what_was_written_meanwhile() {
    let server = SimulatedServer::new(Options::default());
    let store = server.connect();
    let owner = Owner::of_all(&store).await;
    start(&store, "a").await;
    let turn = owner.turn(&store, "a", vec![status_updated("new")]).await;
    server.set_faults(Faults { old_reads: 1_000, delay_max: LEASE, ..Faults::default() });
    let (name, write) = (id("a"), async {
        tokio::task::yield_now().await;
        assert!(is_committed(&commit_one(&store, turn).await));
    });
    let (read, ()) = tokio::join!(store.state(&name), write);
    assert_eq!(read.unwrap().unwrap().last_event_id.0, 0);
    assert_eq!(server.hits().old_reads, 1);
}

/// What one seed does to the same calls, as text.
async fn traced(seed: u64) -> String {
    let faults = Faults { lost: 200, answers_lost: 200, delayed: 300, old_reads: 300, delay_max: LEASE };
    let server = SimulatedServer::new(Options { seed, faults, ..Options::default() });
    let store = server.connect();
    let mut trace = String::new();
    for number in 0..40 {
        let started = store.start(request(&format!("i{}", number % 7))).await;
        let rows = store.load(&id("i0")).await.map(|loaded| loaded.map(|loaded| loaded.inbox));
        trace += &format!("{:?} {started:?} {rows:?}\n", Millis(store.now().0));
    }
    trace
}

#[tokio::test(start_paused = true)]
async fn one_seed_does_the_same_twice_and_another_one_something_else() {
    assert_eq!(traced(7).await, traced(7).await);
    assert_ne!(traced(7).await, traced(8).await);
}
