//! The workloads on the duroxide crate with its SQLite provider, 2 + 2 dispatchers and a poll of 10 ms.
//!
//! Its clients poll for their result, which costs throughput, so each instance tells the waiting client by an in-process
//! hint at its end; the result is not read back. Its provider commits with `synchronous = NORMAL`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use duroxide::providers::sqlite::SqliteProvider;
use duroxide::runtime::{Runtime, RuntimeOptions, registry::ActivityRegistry};
use duroxide::{ActivityContext, Client, OrchestrationContext, OrchestrationRegistry};
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::oneshot;

const TIMER: Duration = Duration::from_secs(2);
const FAN_OUT: usize = 500;

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    workload: String,
    #[arg(long)]
    n: Option<usize>,
    #[arg(long)]
    inflight: Option<usize>,
}

/// Told at the end of an instance, by its id.
type Hints = Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>;
/// When an instance of W6 first asked for its timer.
type Asked = Arc<Mutex<HashMap<String, Instant>>>;
type Marks = Arc<Mutex<Vec<Instant>>>;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let workload = arguments.workload.as_str();
    let (n, inflight) = match workload {
        "w1" => (300, 256),
        "w2" => (150, 128),
        "w3" => (2, 1),
        "w4" => (100, 1),
        "w5" => (300, 1),
        "w6" => (200, 200),
        other => anyhow::bail!("there is no workload {other}"),
    };
    let (n, inflight) = (arguments.n.unwrap_or(n), arguments.inflight.unwrap_or(inflight));
    let directory = tempfile::tempdir_in(std::env::current_exe()?.parent().context("no directory")?)?;
    let file = directory.path().join("db");
    std::fs::File::create(&file)?;
    let store = Arc::new(SqliteProvider::new(&format!("sqlite:{}", file.display()), None).await?);
    let (hints, marks, asked) = (Hints::default(), Marks::default(), Asked::default());
    let options = RuntimeOptions { dispatcher_min_poll_interval: Duration::from_millis(10), ..Default::default() };
    let runtime =
        Runtime::start_with_options(store.clone(), activities(&marks), orchestrations(&hints, &asked), options).await;
    let client = Client::new(store);

    let (cpu, begun) = (cpu_seconds()?, Instant::now());
    let instances = if workload == "w5" { 1 } else { n };
    let runs = stream::iter(0..instances).map(|number| one(&client, (&hints, &asked), (workload, number, n)));
    let mut times: Vec<Duration> = runs.buffer_unordered(inflight).try_collect().await?;
    let (elapsed, cpu) = (begun.elapsed(), cpu_seconds()? - cpu);
    runtime.shutdown(Some(100)).await;

    let steps = match workload {
        "w2" => n * 10,
        "w3" => n * FAN_OUT,
        _ => n,
    } as f64;
    times.sort_unstable();
    let percentile = |p: usize| times[(times.len() * p / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    let marks = marks.lock().expect("nobody panics with it").clone();
    let per_step = |marks: Option<&[Instant]>| {
        let marks = marks.filter(|marks| marks.len() > 1)?;
        Some(marks[marks.len() - 1].duration_since(marks[0]).as_secs_f64() * 1e3 / (marks.len() - 1) as f64)
    };
    println!(
        "{}",
        serde_json::json!({
            "peer": "duroxide-sqlite", "workload": workload, "n": n, "rate": steps / elapsed.as_secs_f64(),
            "p50_ms": percentile(50), "p99_ms": percentile(99), "cpu_s_per_1000": cpu * 1000.0 / steps,
            "fsync_ms": fsync_ms(directory.path())?,
            "first_100_ms_per_step": per_step(marks.get(..100)),
            "last_100_ms_per_step": per_step(marks.len().checked_sub(100).and_then(|from| marks.get(from..))),
        })
    );
    Ok(())
}

async fn one(
    client: &Client,
    (hints, asked): (&Hints, &Asked),
    (workload, number, n): (&str, usize, usize),
) -> anyhow::Result<Duration> {
    let id = format!("i{number}");
    let (hint, told) = oneshot::channel();
    hints.lock().expect("nobody panics with it").insert(id.clone(), hint);
    let begun = Instant::now();
    let name = if workload == "w4" { "w1" } else { workload };
    client.start_orchestration(&id, name, n.to_string()).await?;
    told.await?;
    let ended = Instant::now();
    let asked = asked.lock().expect("nobody panics with it").get(&id).map(|asked| *asked + TIMER);
    Ok(asked.map_or(ended - begun, |due| ended.saturating_duration_since(due)))
}

fn activities(marks: &Marks) -> ActivityRegistry {
    let marks = Arc::clone(marks);
    ActivityRegistry::builder()
        .register("Echo", |_: ActivityContext, input: String| async move { Ok(input) })
        .register("Mark", move |_: ActivityContext, input: String| {
            marks.lock().expect("nobody panics with it").push(Instant::now());
            async move { Ok(input) }
        })
        .build()
}

fn orchestrations(hints: &Hints, asked: &Asked) -> OrchestrationRegistry {
    let end = |hints: &Hints| {
        let hints = Arc::clone(hints);
        move |ctx: &OrchestrationContext| {
            if let Some(hint) = hints.lock().expect("nobody panics with it").remove(&ctx.instance_id()) {
                let _gone = hint.send(());
            }
        }
    };
    let asked = Arc::clone(asked);
    let (end1, end2, end3, end5, end6) = (end(hints), end(hints), end(hints), end(hints), end(hints));
    OrchestrationRegistry::builder()
        .register("w1", move |ctx: OrchestrationContext, input: String| {
            let end = end1.clone();
            async move {
                let output = ctx.schedule_activity("Echo", input).await?;
                end(&ctx);
                Ok(output)
            }
        })
        .register("w2", move |ctx: OrchestrationContext, mut input: String| {
            let end = end2.clone();
            async move {
                for _ in 0..10 {
                    input = ctx.schedule_activity("Echo", input).await?;
                }
                end(&ctx);
                Ok(input)
            }
        })
        .register("w3", move |ctx: OrchestrationContext, _: String| {
            let end = end3.clone();
            async move {
                let all = ctx.join((0..FAN_OUT).map(|n| ctx.schedule_activity("Echo", n.to_string())).collect()).await;
                end(&ctx);
                Ok(all.len().to_string())
            }
        })
        .register("w5", move |ctx: OrchestrationContext, steps: String| {
            let end = end5.clone();
            async move {
                for step in 0..steps.parse::<usize>().map_err(|error| error.to_string())? {
                    ctx.schedule_activity("Mark", step.to_string()).await?;
                }
                end(&ctx);
                Ok(steps)
            }
        })
        .register("w6", move |ctx: OrchestrationContext, input: String| {
            let end = end6.clone();
            asked.lock().expect("nobody panics with it").entry(ctx.instance_id()).or_insert_with(Instant::now);
            async move {
                ctx.schedule_timer(TIMER).await;
                end(&ctx);
                Ok(input)
            }
        })
        .build()
}

fn cpu_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let rest = stat.rsplit_once(')').context("a stat line has a name in parentheses")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

fn fsync_ms(directory: &std::path::Path) -> anyhow::Result<f64> {
    use std::io::Write;
    let mut file = std::fs::File::create(directory.join("fsync-probe"))?;
    let mut times = Vec::new();
    for _ in 0..50 {
        let begun = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times[25].as_secs_f64() * 1e3)
}
