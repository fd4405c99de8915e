//! The workloads on Outlast with a SQLite file, fully synchronous.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::stream::{self, StreamExt, TryStreamExt};
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, RuntimeOptions};

use crate::measure::{Figures, cpu_seconds, fsync_ms, percentile};
use crate::workload::Workload;

const PATIENCE: Duration = Duration::from_secs(600);
const TIMER: Duration = Duration::from_secs(2);
/// Activities of one W3 instance.
const FAN_OUT: usize = 500;

/// Moments that code of the workloads notes.
#[derive(Clone, Default)]
struct Marks {
    /// When each activity of W5 ran, in order.
    ran: Arc<Mutex<Vec<Instant>>>,
    /// When an instance of W6 first asked for its timer.
    asked: Arc<Mutex<HashMap<String, Instant>>>,
}

pub(crate) async fn run(workload: Workload, (n, inflight): (usize, usize)) -> anyhow::Result<Figures> {
    // Beside the program, not in a temporary file system that may be memory.
    let directory =
        tempfile::tempdir_in(std::env::current_exe()?.parent().context("the program lies in a directory")?)?;
    let fsync_ms = fsync_ms(directory.path())?;
    let provider =
        Arc::new(SqliteProvider::new(&format!("sqlite:{}", directory.path().join("db").display()), None).await?);
    let marks = Marks::default();
    let options = RuntimeOptions { worker_concurrency: 256, ..RuntimeOptions::default() };
    let runtime = Runtime::try_start(provider.clone(), activities(&marks), orchestrations(&marks), options).await?;
    let client = Client::new(provider);

    let (cpu, begun) = (cpu_seconds()?, Instant::now());
    let instances = if workload == Workload::W5 { 1 } else { n };
    let runs = stream::iter(0..instances).map(|number| one(&client, (workload, &marks), (number, n)));
    let mut times: Vec<Duration> = runs.buffer_unordered(inflight).try_collect().await?;
    let (elapsed, cpu) = (begun.elapsed(), cpu_seconds()? - cpu);
    runtime.shutdown(None).await;

    let steps = workload.steps(n) as f64;
    let ran = marks.ran.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Figures {
        peer: "outlast-sqlite".to_owned(),
        workload: workload.name().to_owned(),
        n,
        rate: steps / elapsed.as_secs_f64(),
        p50_ms: percentile(&mut times, 50),
        p99_ms: percentile(&mut times, 99),
        cpu_s_per_1000: cpu * 1000.0 / steps,
        fsync_ms,
        first_100_ms_per_step: per_step(ran.get(..100)),
        last_100_ms_per_step: per_step(ran.len().checked_sub(100).and_then(|from| ran.get(from..))),
    })
}

/// One instance from start to result; for W6 how much later than its timer.
async fn one(
    client: &Client,
    (workload, marks): (Workload, &Marks),
    (number, n): (usize, usize),
) -> anyhow::Result<Duration> {
    let id = format!("i{number}");
    let begun = Instant::now();
    let name = if workload == Workload::W4 { Workload::W1 } else { workload }.name();
    client.start_orchestration(&id, name, n.to_string()).await?;
    let _output: String = match client.wait_for_orchestration(&id, PATIENCE).await? {
        outlast::OrchestrationStatus::Completed { output, .. } => output,
        other => anyhow::bail!("{id} ended as {other:?}"),
    };
    let ended = Instant::now();
    let asked = marks.asked.lock().unwrap_or_else(PoisonError::into_inner).get(&id).map(|asked| *asked + TIMER);
    Ok(asked.map_or(ended - begun, |due| ended.saturating_duration_since(due)))
}

fn activities(marks: &Marks) -> ActivityRegistry {
    let ran = Arc::clone(&marks.ran);
    ActivityRegistry::builder()
        .register("Echo", |_: ActivityContext, input: String| async move { Ok(input) })
        .register("Mark", move |_: ActivityContext, input: String| {
            ran.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            async move { Ok(input) }
        })
        .build()
}

fn orchestrations(marks: &Marks) -> OrchestrationRegistry {
    let asked = Arc::clone(&marks.asked);
    OrchestrationRegistry::builder()
        .register(
            "w1",
            |ctx: OrchestrationContext, input: String| async move { ctx.schedule_activity("Echo", input).await },
        )
        .register("w2", |ctx: OrchestrationContext, mut input: String| async move {
            for _ in 0..10 {
                input = ctx.schedule_activity("Echo", input).await?;
            }
            Ok(input)
        })
        .register("w3", |ctx: OrchestrationContext, _: String| async move {
            let all = ctx.join((0..FAN_OUT).map(|n| ctx.schedule_activity("Echo", n.to_string())).collect()).await;
            Ok(all.len().to_string())
        })
        .register("w5", |ctx: OrchestrationContext, steps: String| async move {
            for step in 0..steps.parse::<usize>().map_err(|error| error.to_string())? {
                ctx.schedule_activity("Mark", step.to_string()).await?;
            }
            Ok(steps)
        })
        .register("w6", move |ctx: OrchestrationContext, input: String| {
            asked.lock().unwrap_or_else(PoisonError::into_inner).entry(ctx.instance_id()).or_insert_with(Instant::now);
            async move {
                ctx.schedule_timer(TIMER).await;
                Ok(input)
            }
        })
        .build()
}

fn per_step(marks: Option<&[Instant]>) -> Option<f64> {
    let (first, last) = (marks?.first()?, marks?.last()?);
    Some(last.duration_since(*first).as_secs_f64() * 1e3 / (marks?.len() - 1) as f64)
}
