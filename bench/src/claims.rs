//! Two claims that are no rates: a long history costs no more per step, and waiting instances cost next to nothing.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::stream::{self, StreamExt, TryStreamExt};
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, RuntimeOptions};
use serde::{Deserialize, Serialize};

use crate::processes;

const PATIENCE: Duration = Duration::from_secs(600);
/// How long the idle process is watched.
const WATCH: Duration = Duration::from_secs(20);

/// What steps of one long execution cost.
#[derive(Serialize)]
pub(crate) struct Flat {
    steps: usize,
    second_1000_cpu_s: f64,
    last_1000_cpu_s: f64,
    last_over_second: f64,
}

/// What a process costs whose instances all wait.
#[derive(Serialize)]
pub(crate) struct Waiting {
    instances: usize,
    start_s: f64,
    /// Of the process that started them, when all wait.
    resident_mib_where_started: f64,
    ready_after_restart_s: f64,
    resident_mib: f64,
    idle_cpu_percent: f64,
    queries_per_s: f64,
}

/// What the first process tells the second.
#[derive(Serialize, Deserialize)]
struct Started {
    seconds: f64,
    resident_mib: f64,
}

/// `steps` activities in a row in one execution; CPU time of its last thousand over that of its second.
pub(crate) async fn flat(steps: usize) -> anyhow::Result<Flat> {
    let directory = scratch()?;
    let marks: Arc<Mutex<Vec<f64>>> = Arc::default();
    let noted = Arc::clone(&marks);
    let activities = ActivityRegistry::builder().register("Step", move |_: ActivityContext, input: String| {
        let cpu = cpu_seconds().map_err(|error| error.to_string());
        let noted = Arc::clone(&noted);
        async move {
            noted.lock().unwrap_or_else(PoisonError::into_inner).push(cpu?);
            Ok(input)
        }
    });
    let provider = open(directory.path()).await?;
    let runtime = Runtime::try_start(provider.clone(), activities.build(), code(), RuntimeOptions::default()).await?;
    let client = Client::new(provider);
    client.start_orchestration("long", "Long", steps.to_string()).await?;
    client.wait_for_orchestration("long", PATIENCE).await?;
    runtime.shutdown(None).await;
    let marks = marks.lock().unwrap_or_else(PoisonError::into_inner);
    let between = |from: usize, to: usize| anyhow::Ok(marks.get(to).context("enough steps")? - marks[from]);
    let (second, last) = (between(1_000, 2_000)?, between(marks.len() - 1_001, marks.len() - 1)?);
    Ok(Flat { steps, second_1000_cpu_s: second, last_1000_cpu_s: last, last_over_second: last / second })
}

/// Starts the instances, half on a far timer and half on an event, then opens the file in a fresh process.
pub(crate) async fn waiting(instances: usize) -> anyhow::Result<()> {
    let directory = scratch()?;
    let begun = Instant::now();
    let provider = open(directory.path()).await?;
    let runtime = Runtime::try_start(provider.clone(), ActivityRegistry::builder().build(), code(), options()).await?;
    let client = Client::new(provider);
    let start = async |number: usize| {
        let name = if number.is_multiple_of(2) { "Sleep" } else { "Event" };
        client.start_orchestration(format!("i{number}"), name, "").await
    };
    stream::iter(0..instances).map(start).buffer_unordered(256).try_collect::<Vec<()>>().await?;
    while client.get_queue_depths().await?.orchestrator_queue > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let started = Started { seconds: begun.elapsed().as_secs_f64(), resident_mib: resident_mib()? };
    runtime.shutdown(None).await;
    let status = std::process::Command::new(std::env::current_exe()?)
        .args(["--watch-waiting", &directory.path().display().to_string()])
        .args(["--n", &instances.to_string(), "--started", &serde_json::to_string(&started)?])
        .status()?;
    anyhow::ensure!(status.success(), "the second process failed");
    Ok(())
}

/// The second process: how soon it is ready, and what it costs then.
pub(crate) async fn watch_waiting(directory: &Path, instances: usize, started: &str) -> anyhow::Result<Waiting> {
    let started: Started = serde_json::from_str(started)?;
    let begun = Instant::now();
    let provider = open(directory).await?;
    let runtime = Runtime::try_start(provider.clone(), ActivityRegistry::builder().build(), code(), options()).await?;
    let client = Client::new(provider.clone());
    client.start_orchestration("first", "Now", "").await?;
    client.wait_for_orchestration("first", PATIENCE).await?;
    client.raise_event("i1", "go", "").await?;
    client.wait_for_orchestration("i1", PATIENCE).await?;
    let ready_after_restart_s = begun.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (cpu, queries) = (cpu_seconds()?, provider.queries());
    tokio::time::sleep(WATCH).await;
    let waiting = Waiting {
        instances,
        start_s: started.seconds,
        resident_mib_where_started: started.resident_mib,
        ready_after_restart_s,
        resident_mib: resident_mib()?,
        idle_cpu_percent: (cpu_seconds()? - cpu) * 100.0 / WATCH.as_secs_f64(),
        queries_per_s: (provider.queries() - queries) as f64 / WATCH.as_secs_f64(),
    };
    runtime.shutdown(None).await;
    Ok(waiting)
}

fn code() -> OrchestrationRegistry {
    OrchestrationRegistry::builder()
        .register("Long", |ctx: OrchestrationContext, steps: String| async move {
            for step in 0..steps.parse::<usize>().map_err(|error| error.to_string())? {
                ctx.schedule_activity("Step", step.to_string()).await?;
            }
            Ok(steps)
        })
        .register("Sleep", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_timer(Duration::from_secs(30 * 24 * 3600)).await;
            Ok(String::new())
        })
        .register("Event", |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("go").await) })
        .register("Now", |_: OrchestrationContext, _: String| async move { Ok(String::new()) })
        .build()
}

fn options() -> RuntimeOptions {
    RuntimeOptions::default()
}

fn scratch() -> anyhow::Result<tempfile::TempDir> {
    Ok(tempfile::tempdir_in(crate::program_directory()?)?)
}

async fn open(directory: &Path) -> anyhow::Result<Arc<SqliteProvider>> {
    Ok(Arc::new(SqliteProvider::new(&format!("sqlite:{}", directory.join("db").display()), None).await?))
}

fn cpu_seconds() -> anyhow::Result<f64> {
    processes::cpu_seconds(std::process::id())
}

fn resident_mib() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a status has VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0)
}
