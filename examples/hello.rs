//! The smallest durable program: an orchestration that calls one activity, on a SQLite file.
//!
//! Run it with `cargo run --example hello`. With a path it keeps the file: run
//! `cargo run --example hello -- hello.sqlite` twice, and the second run prints the recorded result without doing the
//! work again, because a start under an id that exists changes nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, RuntimeOptions};

const PATIENCE: Duration = Duration::from_secs(10);

/// Activities may do anything: read files, call services, take time. Their result is recorded, their code is not replayed.
async fn greet(_: ActivityContext, name: String) -> Result<String, String> {
    println!("the activity runs for {name}");
    Ok(format!("Hello, {name}!"))
}

/// Orchestrations only decide. This code may be run again after a crash, and gets the recorded results then.
async fn hello(ctx: OrchestrationContext, name: String) -> Result<String, String> {
    ctx.schedule_activity_typed("Greet", &name).await
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // The directory is removed when this value is dropped, so it lives until the end of the program.
    let scratch = tempfile::tempdir()?;
    let file = std::env::args_os().nth(1).map_or_else(|| scratch.path().join("hello.sqlite"), PathBuf::from);
    let provider = Arc::new(SqliteProvider::new(&format!("sqlite:{}", file.display()), None).await?);

    let activities = ActivityRegistry::builder().register_typed("Greet", greet).build();
    let orchestrations = OrchestrationRegistry::builder().register_typed("Hello", hello).build();
    let runtime = Runtime::try_start(provider.clone(), activities, orchestrations, RuntimeOptions::default()).await?;

    let client = Client::new(provider);
    client.start_orchestration_typed("hello-1", "Hello", &"World").await?;
    let greeting: String =
        client.wait_for_orchestration_typed("hello-1", PATIENCE).await.context("hello-1 has no greeting")?;
    println!("hello-1 returned: {greeting}");

    runtime.shutdown(None).await;
    Ok(())
}
