//! A claim that is no rate: a million timers cost a node and a broker next to nothing while they are pending, fire on time,
//! and survive the loss of every node and of the broker.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use outlast::providers::cluster::{ClusterOptions, ClusterProvider};
use outlast::{Client, EventKind};
use serde::Serialize;
use sqlx::PgConnection;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::measured::load_average;
use crate::processes;
use crate::servers::{NAMESPACE, NATS_URL, POSTGRES_URL, Place, Servers};

/// The far timers are due after this, spread over as much again.
const FAR: Duration = Duration::from_secs(6 * 3600);
/// How long timers fire, and how many a second.
const MEASURED: Duration = Duration::from_secs(60);
const PER_SECOND: u64 = 1_000;
/// From the first start of those that fire until the first is due: more than the horizon of a node's memory.
const AHEAD: Duration = Duration::from_secs(75);
/// Timers that become due while there is neither node nor broker, and after.
const AFTER_LOSS: u64 = 5_000;
/// How long the idle node is watched.
const WATCH: Duration = Duration::from_secs(30);
/// After the last timer was due, until the histories are read.
const SPARE: Duration = Duration::from_secs(2);
/// Calls of the client at once.
const CALLS: usize = 512;
const PATIENCE: Duration = Duration::from_secs(600);

/// The figures.
#[derive(Serialize)]
pub(crate) struct Timers {
    timers: usize,
    instances: usize,
    load: f64,
    instances_started_per_s: f64,
    node_mib_empty: f64,
    node_mib_pending: f64,
    nats_mib_before: Option<f64>,
    nats_mib_pending: Option<f64>,
    idle_node_cpu_percent: f64,
    idle_transactions_per_s: f64,
    look_ms: f64,
    /// When thousands come within the horizon.
    full_look_ms: f64,
    full_look_plan: String,
    fired: Lateness,
    node_mib_fired: f64,
    pending_before_loss: i64,
    pending_after_loss: i64,
    ready_after_loss_s: f64,
    fired_after_loss: Lateness,
    node_mib_after_loss: f64,
}

/// Milliseconds between the moment that a timer was for and its event, both by Postgres' clock.
#[derive(Serialize)]
struct Lateness {
    timers: usize,
    early: usize,
    p50_ms: u64,
    p99_ms: u64,
    max_ms: u64,
}

/// `timers` pending ones, `per_instance` in each instance.
pub(crate) async fn run(timers: usize, per_instance: usize) -> anyhow::Result<()> {
    let servers = Servers::up().await?;
    let place = servers.fresh_place().await?;
    let measured = measure(&servers, &place, timers, per_instance).await;
    servers.clear(place).await?;
    println!("{}", serde_json::to_string(&measured?)?);
    Ok(())
}

async fn measure(servers: &Servers, place: &Place, timers: usize, per_instance: usize) -> anyhow::Result<Timers> {
    let load = load_average();
    let client = client(place).await?;
    let mut db = place.connect().await?;
    let node = Node::start(place).await?;
    let nats_mib = || servers.nats.and_then(|pid| resident_mib(pid).ok());
    let (node_mib_empty, nats_mib_before) = (node.resident_mib()?, nats_mib());
    let instances = timers / per_instance;
    let instances_started_per_s = start_far(&client, instances, per_instance).await?;
    settle(&client, &mut db).await?;
    let (node_mib_pending, nats_mib_pending) = (node.resident_mib()?, nats_mib());
    let (idle_node_cpu_percent, idle_transactions_per_s) = watch(&node, place, &mut db).await?;
    let (look_ms, _) = look(&mut db).await?;
    eprintln!("{instances_started_per_s:.0} starts/s, node {node_mib_pending:.0} MiB, nats {nats_mib_pending:?} MiB");
    eprintln!(
        "idle: {idle_node_cpu_percent:.1} % CPU, {idle_transactions_per_s:.1} transactions/s, a look takes {look_ms} ms"
    );
    let over = start_due(&client, "due", PER_SECOND * MEASURED.as_secs()).await?;
    tokio::time::sleep_until((over - MEASURED).into()).await;
    let (full_look_ms, full_look_plan) = look(&mut db).await?;
    eprintln!("a look at what fires takes {full_look_ms} ms: {full_look_plan}");
    let fired = lateness(&client, "due", PER_SECOND * MEASURED.as_secs(), over).await?;
    let node_mib_fired = node.resident_mib()?;
    eprintln!("p50 {} p99 {} max {} ms; the node and the broker go now", fired.p50_ms, fired.p99_ms, fired.max_ms);
    let over = start_due(&client, "late", AFTER_LOSS).await?;
    settle(&client, &mut db).await?;
    let pending_before_loss = pending(&mut db).await?;
    node.kill().await?;
    wipe(place).await?;
    let begun = Instant::now();
    let node = Node::start(place).await?;
    client.start_orchestration("first", "timers", "1 0 0").await?;
    client.wait_for_orchestration("first", PATIENCE).await?;
    let ready_after_loss_s = begun.elapsed().as_secs_f64();
    let pending_after_loss = pending(&mut db).await?;
    eprintln!("ready after {ready_after_loss_s:.1} s, {pending_after_loss} of {pending_before_loss} pending");
    let fired_after_loss = lateness(&client, "late", AFTER_LOSS, over).await?;
    let node_mib_after_loss = node.resident_mib()?;
    node.kill().await?;
    Ok(Timers {
        timers,
        instances,
        load,
        instances_started_per_s,
        node_mib_empty,
        node_mib_pending,
        nats_mib_before,
        nats_mib_pending,
        idle_node_cpu_percent,
        idle_transactions_per_s,
        look_ms,
        full_look_ms,
        full_look_plan,
        fired,
        node_mib_fired,
        pending_before_loss,
        pending_after_loss,
        ready_after_loss_s,
        fired_after_loss,
        node_mib_after_loss,
    })
}

async fn client(place: &Place) -> anyhow::Result<Client> {
    let options = ClusterOptions::new(&place.postgres_url, &place.nats_url).namespace(&place.name);
    Ok(Client::new(std::sync::Arc::new(ClusterProvider::connect(options).await?)))
}

/// A node as a process of its own.
struct Node {
    child: Child,
    pid: u32,
}

impl Node {
    async fn start(place: &Place) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--role", "orchestrator", "--workload", "w6", "--n", "1", "--inflight", "1"])
            .env(POSTGRES_URL, &place.postgres_url)
            .env(NATS_URL, &place.nats_url)
            .env(NAMESPACE, &place.name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut said = BufReader::new(child.stdout.take().context("standard output is piped")?).lines();
        while let Some(line) = said.next_line().await? {
            if line == "ready" {
                let pid = child.id().context("a node that is ready runs")?;
                return Ok(Self { child, pid });
            }
        }
        anyhow::bail!("a node ended before it was ready")
    }

    fn resident_mib(&self) -> anyhow::Result<f64> {
        resident_mib(self.pid)
    }

    /// By SIGKILL.
    async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}

fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a status has VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0)
}

/// Returns how many were started a second.
async fn start_far(client: &Client, instances: usize, per_instance: usize) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let apart = FAR.as_millis() / (instances * per_instance).max(1) as u128;
    let start = async |number: usize| {
        let first = FAR.as_millis() + apart * (number * per_instance) as u128;
        let input = format!("{per_instance} {first} {apart}");
        client.start_orchestration(format!("far{number}"), "timers", input).await?;
        if number.is_multiple_of(50_000) {
            eprintln!("{number} started after {:.0} s", begun.elapsed().as_secs_f64());
        }
        anyhow::Ok(())
    };
    stream::iter(0..instances).map(start).buffer_unordered(CALLS).try_collect::<Vec<()>>().await?;
    Ok(instances as f64 / begun.elapsed().as_secs_f64())
}

/// One timer each, a millisecond apart, the first due after `AHEAD`; returns when the last one is due.
async fn start_due(client: &Client, prefix: &str, count: u64) -> anyhow::Result<Instant> {
    let begun = Instant::now();
    let start = async |number: u64| {
        let due = AHEAD + Duration::from_millis(number * 1_000 / PER_SECOND);
        let wait = due.saturating_sub(begun.elapsed()).as_millis();
        client.start_orchestration(format!("{prefix}{number}"), "timers", format!("1 {wait} 0")).await?;
        anyhow::Ok(())
    };
    stream::iter(0..count).map(start).buffer_unordered(CALLS).try_collect::<Vec<()>>().await?;
    ensure!(begun.elapsed() < AHEAD, "timers were due before all of them were started");
    Ok(begun + AHEAD + Duration::from_millis(count * 1_000 / PER_SECOND))
}

/// Waits until nothing is to be done, and the plans know of it.
async fn settle(client: &Client, db: &mut PgConnection) -> anyhow::Result<()> {
    while client.get_queue_depths().await?.orchestrator_queue > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    sqlx::raw_sql(include_str!("sql/analyze.sql")).execute(db).await?;
    Ok(())
}

/// CPU of the node, and transactions of the whole database, while nothing happens.
async fn watch(node: &Node, place: &Place, db: &mut PgConnection) -> anyhow::Result<(f64, f64)> {
    // Idle instances are let go, and what the starts left to do is done.
    tokio::time::sleep(Duration::from_secs(70)).await;
    let (cpu, counted) = (processes::cpu_seconds(node.pid)?, place.counters(db).await?);
    tokio::time::sleep(WATCH).await;
    let (cpu_later, counted_later) = (processes::cpu_seconds(node.pid)?, place.counters(db).await?);
    let transactions = (counted_later.commits - counted.commits) as f64;
    Ok(((cpu_later - cpu) * 100.0 / WATCH.as_secs_f64(), transactions / WATCH.as_secs_f64()))
}

/// What a node asks every 30 seconds, with its duration and plan.
async fn look(db: &mut PgConnection) -> anyhow::Result<(f64, String)> {
    let lines: Vec<String> = sqlx::query_scalar(include_str!("sql/look.sql")).fetch_all(db).await?;
    let time = lines.iter().find_map(|line| line.trim().strip_prefix("Execution Time: ")?.strip_suffix(" ms"));
    let time = time.context("a plan that was run has a time")?.parse()?;
    Ok((time, lines.join(" / ")))
}

async fn pending(db: &mut PgConnection) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar(include_str!("sql/pending.sql")).fetch_one(db).await?)
}

async fn wipe(place: &Place) -> anyhow::Result<()> {
    let streams = async_nats::jetstream::new(async_nats::connect(&place.nats_url).await?);
    streams.delete_stream(format!("{}_WORK", place.name)).await?;
    Ok(())
}

async fn lateness(client: &Client, prefix: &str, count: u64, over: Instant) -> anyhow::Result<Lateness> {
    let late = async |number: u64| {
        let id = format!("{prefix}{number}");
        client.wait_for_orchestration(&id, PATIENCE).await?;
        let history = client.read_execution_history(&id, 1).await?;
        let fired = history.iter().find_map(|event| match event.kind {
            EventKind::TimerFired { fire_at_ms } => Some((fire_at_ms, event.timestamp_ms)),
            _ => None,
        });
        fired.with_context(|| format!("{id} ended without its timer"))
    };
    // Read when all have fired: reading costs, and must not make others late.
    tokio::time::sleep_until((over + SPARE).into()).await;
    let fired: Vec<(u64, u64)> = stream::iter(0..count).map(late).buffer_unordered(CALLS).try_collect().await?;
    let early = fired.iter().filter(|(due, at)| at < due).count();
    let mut times: Vec<u64> = fired.iter().map(|(due, at)| at.saturating_sub(*due)).collect();
    times.sort_unstable();
    let at = |part: usize| times.get((times.len() - 1) * part / 100).copied().unwrap_or_default();
    Ok(Lateness { timers: times.len(), early, p50_ms: at(50), p99_ms: at(99), max_ms: at(100) })
}
