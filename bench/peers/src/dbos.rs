//! The workloads on the dbos crate: a pool of 32, workflows started directly; steps run in the workflow's own process.

mod arguments;
#[path = "../../src/figures.rs"]
mod figures;
#[path = "../../src/served.rs"]
mod served;
#[path = "../../src/workload.rs"]
mod workload;

use std::collections::HashMap;

use anyhow::Context;
use clap::Parser;
use dbos::{Config, DBOS, RunOptions, WorkflowRef};
use futures::future::try_join_all;

use served::{Start, now_us, serve};
use workload::{CHAIN, FAN_OUT, TIMER};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = arguments::Arguments::parse();
    let url = std::env::var("OUTLAST_POSTGRES_URL").context("OUTLAST_POSTGRES_URL is not set")?;
    let config = Config { max_connections: 32, app_version: Some("1".to_owned()), ..Config::new("bench-peer", url) };
    let dbos = DBOS::new(config);
    let workflows: HashMap<&str, WorkflowRef<String, String>> = HashMap::from([
        ("w1", dbos.register_workflow("w1", w1)?),
        ("w2", dbos.register_workflow("w2", w2)?),
        ("w3", dbos.register_workflow("w3", w3)?),
        ("w5", dbos.register_workflow("w5", w5)?),
        ("w6", dbos.register_workflow("w6", w6)?),
    ]);
    dbos.launch().await?;
    serve(arguments.workload, arguments.size(), async |start: Start| {
        let options = RunOptions { workflow_id: Some(&start.id), ..Default::default() };
        Ok(workflows[start.orchestration].run_with(start.input, options).await?)
    })
    .await
}

async fn echo(input: String) -> dbos::Result<String> {
    dbos::step("Echo", move || {
        let input = input.clone();
        async move { Ok(input) }
    })
    .await
}

async fn w1(input: String) -> dbos::Result<String> {
    echo(input).await
}

async fn w2(mut input: String) -> dbos::Result<String> {
    for _ in 0..CHAIN {
        input = echo(input).await?;
    }
    Ok(input)
}

async fn w3(_: String) -> dbos::Result<String> {
    // A step takes its place where it is made, so all are made before one is awaited.
    let steps = (0..FAN_OUT).map(|n| dbos::step("Echo", move || async move { dbos::Result::Ok(n.to_string()) }));
    let all: Vec<String> = try_join_all(steps).await?;
    Ok(all.len().to_string())
}

async fn w5(steps: String) -> dbos::Result<String> {
    let mut marks: Vec<String> = Vec::new();
    for _ in 0..steps.parse::<usize>().unwrap_or_default() {
        marks.push(dbos::step("Mark", || async { dbos::Result::Ok(now_us().to_string()) }).await?);
    }
    Ok(marks.join(","))
}

async fn w6(_: String) -> dbos::Result<String> {
    let asked = now_us();
    dbos::sleep(TIMER).await?;
    Ok(asked.to_string())
}
