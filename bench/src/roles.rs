//! Outlast as it is measured: all of it in one process on SQLite, or orchestrator, worker and client of a cluster.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use outlast::providers::Provider;
use outlast::providers::cluster::{ClusterOptions, ClusterProvider};
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, RuntimeOptions};

use crate::served::{Orders, Start, now_us, serve};
use crate::servers::{NAMESPACE, NATS_URL, POSTGRES_URL};
use crate::workload::{CHAIN, FAN_OUT, Size, TIMER, Workload};

const PATIENCE: Duration = Duration::from_secs(600);
/// Activities that run at once, where any run.
const WORKER_CONCURRENCY: usize = 256;

/// What a process that this program started of itself does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Client and runtime on a SQLite file.
    Sqlite,
    /// Only a client of the cluster.
    Client,
    /// Orchestrations without activities.
    Orchestrator,
    /// Activities without orchestrations.
    Worker,
    /// The cluster's servers without Outlast.
    Floor,
}

impl Role {
    /// On the command line, and of the process in figures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Client => "client",
            Self::Orchestrator => "orchestrator",
            Self::Worker => "worker",
            Self::Floor => "floor",
        }
    }
}

/// Everything on a SQLite file, in the directory for temporary files that whoever measures has chosen.
pub(crate) async fn sqlite(workload: Workload, size: Size) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = format!("sqlite:{}", directory.path().join("db").display());
    let provider = Arc::new(SqliteProvider::new(&file, None).await?);
    let options = RuntimeOptions { worker_concurrency: WORKER_CONCURRENCY, ..RuntimeOptions::default() };
    let _runtime = Runtime::try_start(provider.clone(), activities(), orchestrations(), options).await?;
    drive(provider, workload, size).await
}

pub(crate) async fn client(workload: Workload, size: Size) -> anyhow::Result<()> {
    drive(connect().await?, workload, size).await
}

pub(crate) async fn orchestrator() -> anyhow::Result<()> {
    let options = RuntimeOptions { worker_concurrency: 0, ..RuntimeOptions::default() };
    host(ActivityRegistry::builder().build(), orchestrations(), options).await
}

pub(crate) async fn worker() -> anyhow::Result<()> {
    let options = RuntimeOptions { worker_concurrency: WORKER_CONCURRENCY, ..RuntimeOptions::default() };
    host(activities(), OrchestrationRegistry::builder().build(), options).await
}

async fn host(
    activities: ActivityRegistry,
    orchestrations: OrchestrationRegistry,
    options: RuntimeOptions,
) -> anyhow::Result<()> {
    let orders = Orders::listen();
    let _runtime = Runtime::try_start(connect().await?, activities, orchestrations, options).await?;
    println!("ready");
    orders.wait_for_end().await;
    Ok(())
}

async fn connect() -> anyhow::Result<Arc<ClusterProvider>> {
    let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
    let options = ClusterOptions::new(variable(POSTGRES_URL)?, variable(NATS_URL)?).namespace(&variable(NAMESPACE)?);
    Ok(Arc::new(ClusterProvider::connect(options).await?))
}

async fn drive<P: Provider>(provider: Arc<P>, workload: Workload, size: Size) -> anyhow::Result<()> {
    let client = Client::new(provider);
    serve(workload, size, async |start: Start| {
        client.start_orchestration(&start.id, start.orchestration, start.input).await?;
        match client.wait_for_orchestration(&start.id, PATIENCE).await? {
            outlast::OrchestrationStatus::Completed { output, .. } => Ok(output),
            other => anyhow::bail!("{} ended as {other:?}", start.id),
        }
    })
    .await
}

fn activities() -> ActivityRegistry {
    ActivityRegistry::builder()
        .register("Echo", |_: ActivityContext, input: String| async move { Ok(input) })
        .register("Mark", |_: ActivityContext, _: String| async move { Ok(now_us().to_string()) })
        .build()
}

fn orchestrations() -> OrchestrationRegistry {
    let asked: Mutex<HashMap<String, u64>> = Mutex::default();
    OrchestrationRegistry::builder()
        .register(
            "w1",
            |ctx: OrchestrationContext, input: String| async move { ctx.schedule_activity("Echo", input).await },
        )
        .register("w2", |ctx: OrchestrationContext, mut input: String| async move {
            for _ in 0..CHAIN {
                input = ctx.schedule_activity("Echo", input).await?;
            }
            Ok(input)
        })
        .register("w3", |ctx: OrchestrationContext, _: String| async move {
            let all = ctx.join((0..FAN_OUT).map(|n| ctx.schedule_activity("Echo", n.to_string())).collect()).await;
            Ok(all.len().to_string())
        })
        .register("w5", |ctx: OrchestrationContext, steps: String| async move {
            let mut marks = Vec::new();
            for step in 0..steps.parse::<usize>().map_err(|error| error.to_string())? {
                marks.push(ctx.schedule_activity("Mark", step.to_string()).await?);
            }
            Ok(marks.join(","))
        })
        .register("timers", |ctx: OrchestrationContext, input: String| async move {
            let numbers: Vec<u64> = input.split(' ').filter_map(|number| number.parse().ok()).collect();
            let [count, first, apart] = numbers[..] else { return Err("three numbers".to_owned()) };
            let timer = |number| ctx.schedule_timer(Duration::from_millis(first + apart * number));
            ctx.join((0..count).map(timer).collect()).await;
            Ok(String::new())
        })
        .register("w6", move |ctx: OrchestrationContext, _: String| {
            // A replay must give the same moment, so the first is kept.
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            let asked = *asked.entry(ctx.instance_id()).or_insert_with(now_us);
            async move {
                ctx.schedule_timer(TIMER).await;
                Ok(asked.to_string())
            }
        })
        .build()
}
