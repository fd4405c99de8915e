//! How long recovery takes, as a table. Not a test of limits: run it by name, on a quiet machine.
//!
//! `cargo nextest run --release -p outlast --test faults --run-ignored only --no-capture figures`

use std::time::{Duration, Instant};

use outlast::{Client, EventKind, OrchestrationStatus};
use outlast_test_support::NatsServer;

use crate::node::{Cluster, PATIENCE, Role, wall_ms};

const ROUNDS: usize = 20;
/// The default lease.
const LEASE: Duration = Duration::from_secs(5);
/// Instances of a round, so many that every node has some.
const INSTANCES: usize = 64;
/// Timers that fire over ten seconds.
const TIMERS: usize = 10_000;

fn row(what: &str, mut figures: Vec<f64>) {
    figures.sort_by(f64::total_cmp);
    let at = |part: f64| figures[((figures.len() - 1) as f64 * part).round() as usize];
    println!("| {what} | {} | {:.0} | {:.0} | {:.0} |", figures.len(), at(0.5), at(0.99), at(1.0));
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

async fn completed(client: &Client, id: &str) -> String {
    match client.wait_for_orchestration(id, PATIENCE).await.unwrap() {
        OrchestrationStatus::Completed { output, .. } => output,
        other => panic!("{id}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and takes minutes"]
async fn figures() {
    println!("| what, in milliseconds | n | p50 | p99 | max |");
    println!("|---|---|---|---|---|");
    row("cancel to the activity in another process", cancel_latency().await);
    row("timer later than due, 1,000 a second, by the store's clock", timer_lateness().await);
    row("all goes on after the broker came back empty", recovery_after_wipe().await);
    row("all goes on after kill -9 of a node, lease 5 s", takeover().await);
}

async fn takeover() -> Vec<f64> {
    let cluster = Cluster { lease: LEASE, ..Cluster::shared() };
    let _survivor = cluster.process(Role::Both);
    let client = cluster.client().await;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let mut victim = cluster.process(Role::Both);
        // It joins, and shards are shared out.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let ids: Vec<String> = (0..INSTANCES).map(|n| format!("w{round}-{n}")).collect();
        for id in &ids {
            client.start_orchestration(id, "Wait", "").await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        victim.kill();
        let killed = Instant::now();
        for id in &ids {
            client.raise_event(id, "go", "went").await.unwrap();
        }
        for id in &ids {
            assert_eq!(completed(&client, id).await, "went");
        }
        times.push(ms(killed));
    }
    times
}

async fn recovery_after_wipe() -> Vec<f64> {
    let mut nats = NatsServer::own();
    let cluster = Cluster::on(&Cluster::shared().postgres, &nats.url);
    let _orchestrator = cluster.process(Role::Orchestrator);
    let _worker = cluster.process(Role::Worker);
    let client = cluster.client().await;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let ids: Vec<String> = (0..INSTANCES).map(|n| format!("c{round}-{n}")).collect();
        for id in &ids {
            client.start_orchestration(id, "Chain", id.clone()).await.unwrap();
        }
        nats.kill();
        nats.wipe();
        nats.up();
        let back = Instant::now();
        for id in &ids {
            assert_eq!(completed(&client, id).await, format!("{id}......"));
        }
        times.push(ms(back));
    }
    times
}

async fn cancel_latency() -> Vec<f64> {
    let cluster = Cluster::shared();
    let _orchestrator = cluster.process(Role::Orchestrator);
    let _worker = cluster.process(Role::Worker);
    let client = cluster.client().await;
    let mut times = Vec::new();
    for round in 0..ROUNDS * 5 {
        let (witness, hold) = (format!("witness{round}"), format!("hold{round}"));
        client.start_orchestration(&witness, "Witness", "").await.unwrap();
        client.start_orchestration(&hold, "Hold", witness.clone()).await.unwrap();
        client.wait_for_status_change(&witness, 0, Duration::from_secs(1), PATIENCE).await.unwrap();
        let asked = wall_ms();
        client.cancel_instance(&hold, "enough").await.unwrap();
        let noticed: u64 = completed(&client, &witness).await.parse().unwrap();
        times.push(noticed.saturating_sub(asked) as f64);
    }
    times
}

async fn timer_lateness() -> Vec<f64> {
    let cluster = Cluster::shared();
    let _node = cluster.process(Role::Orchestrator);
    let client = cluster.client().await;
    let started = Instant::now();
    for first in (0..TIMERS).step_by(500) {
        let starts: Vec<_> = (first..first + 500)
            .map(|number| {
                let client = client.clone();
                let due = Duration::from_secs(20) + Duration::from_millis(number as u64);
                let wait = due.saturating_sub(started.elapsed()).as_millis().to_string();
                tokio::spawn(async move { client.start_orchestration(format!("t{number}"), "Due", wait).await })
            })
            .collect();
        for start in starts {
            start.await.unwrap().unwrap();
        }
    }
    let mut times = Vec::new();
    for number in 0..TIMERS {
        let id = format!("t{number}");
        completed(&client, &id).await;
        for event in client.read_execution_history(&id, 1).await.unwrap() {
            if let EventKind::TimerFired { fire_at_ms } = event.kind {
                times.push((event.timestamp_ms - fire_at_ms) as f64);
            }
        }
    }
    times
}
