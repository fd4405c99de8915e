//! Worker pools: an activity with a tag runs only where the tag is taken.
//!
//! Two runtimes share one provider; they could as well be two kinds of machine. One takes only what is tagged `gpu`, the
//! other one only what has no tag. Each registers just the activities that it can run.
//! Run it with `cargo run --example tags`.

use std::sync::Arc;
use std::time::Duration;

use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, RuntimeOptions, TagFilter,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Stands for all real work here: what matters is who does it.
async fn who(ctx: ActivityContext, input: String) -> Result<String, String> {
    // A worker's name begins with its node's and goes on with what makes it unique.
    let pool = ctx.worker_id().split('-').next().unwrap_or_default().to_owned();
    Ok(format!("{} {input}: {pool} (tag {})", ctx.activity_name(), ctx.tag().unwrap_or("none")))
}

async fn film(ctx: OrchestrationContext, _: String) -> Result<Vec<String>, String> {
    let mut report = vec![ctx.schedule_activity("Cut", "film").await?];
    let frames = (1..=3).map(|n| ctx.schedule_activity("Render", format!("frame {n}")).with_tag("gpu")).collect();
    for frame in ctx.join(frames).await {
        report.push(frame?);
    }
    report.push(ctx.schedule_activity("Upload", "film").await?);
    Ok(report)
}

fn pool(name: &str, filter: TagFilter) -> RuntimeOptions {
    RuntimeOptions { worker_node_id: Some(name.to_owned()), worker_tag_filter: filter, ..RuntimeOptions::default() }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let provider = Arc::new(SqliteProvider::new_in_memory().await?);
    let both = OrchestrationRegistry::builder().register_typed("Film", film).build();
    let renderers = ActivityRegistry::builder().register("Render", who).build();
    let others = ActivityRegistry::builder().register("Cut", who).register("Upload", who).build();
    let gpus = pool("gpus", TagFilter::tags(["gpu"]));
    let gpus = Runtime::try_start(provider.clone(), renderers, both.clone(), gpus).await?;
    let cpus = pool("cpus", TagFilter::DefaultOnly);
    let cpus = Runtime::try_start(provider.clone(), others, both, cpus).await?;

    let client = Client::new(provider);
    client.start_orchestration_typed("film-1", "Film", &"").await?;
    let report: Vec<String> = client.wait_for_orchestration_typed("film-1", PATIENCE).await?;
    for line in report {
        println!("{line}");
    }

    gpus.shutdown(None).await;
    cpus.shutdown(None).await;
    Ok(())
}
