//! Fan-out and fan-in: one activity per file, all scheduled at once, joined in order.
//!
//! Counts the words of this package's own Rust files and takes their SHA-256 digests. The directory may be given as an
//! argument. Run it with `cargo run --example fan_out`.
//!
//! Listing a directory is an activity too: orchestration code must not look at the world, or a replay would differ.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, RuntimeOptions};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Measured {
    path: String,
    words: usize,
    digest: String,
}

async fn list(_: ActivityContext, directory: String) -> Result<Vec<String>, String> {
    let mut paths = Vec::new();
    for entry in WalkDir::new(directory).sort_by_file_name() {
        let path = entry.map_err(|error| error.to_string())?.into_path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path.display().to_string());
        }
    }
    Ok(paths)
}

async fn measure(_: ActivityContext, path: String) -> Result<Measured, String> {
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let digest = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Measured { path, words: text.split_whitespace().count(), digest })
}

async fn survey(ctx: OrchestrationContext, directory: String) -> Result<Vec<Measured>, String> {
    let paths: Vec<String> = ctx.schedule_activity_typed("List", &directory).await?;
    // Scheduling comes first, waiting after: an `await` inside of the loop would run them one by one.
    let running = paths.iter().map(|path| ctx.schedule_activity_typed("Measure", path)).collect();
    ctx.join(running).await.into_iter().collect()
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").to_owned());
    let activities =
        ActivityRegistry::builder().register_typed("List", list).register_typed("Measure", measure).build();
    let orchestrations = OrchestrationRegistry::builder().register_typed("Survey", survey).build();
    // How many activities run at once is the worker's business, not the orchestration's.
    let options = RuntimeOptions { worker_concurrency: 8, ..RuntimeOptions::default() };
    let provider = Arc::new(SqliteProvider::new_in_memory().await?);
    let runtime = Runtime::try_start(provider.clone(), activities, orchestrations, options).await?;

    let client = Client::new(provider);
    client.start_orchestration_typed("survey", "Survey", &directory).await?;
    let measured: Vec<Measured> = client.wait_for_orchestration_typed("survey", PATIENCE).await?;
    for file in &measured {
        let name = Path::new(&file.path).strip_prefix(&directory)?;
        println!("{:.12}  {:5} words  {}", file.digest, file.words, name.display());
    }
    let words: usize = measured.iter().map(|file| file.words).sum();
    println!("{} files, {words} words", measured.len());

    runtime.shutdown(None).await;
    Ok(())
}
