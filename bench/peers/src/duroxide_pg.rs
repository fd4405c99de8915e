//! The workloads on the duroxide crate with its Postgres provider: 4 + 4 dispatchers, a pool of 16, a poll of 10 ms.

mod arguments;
mod duroxide_code;
#[path = "../../src/figures.rs"]
mod figures;
#[path = "../../src/served.rs"]
mod served;
#[path = "../../src/workload.rs"]
mod workload;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use duroxide::runtime::RuntimeOptions;
use duroxide_pg::PostgresProvider;

fn main() -> anyhow::Result<()> {
    // SAFETY: no other thread runs yet. The provider's pool has no other setting.
    unsafe { std::env::set_var("DUROXIDE_PG_POOL_MAX", "16") };
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> anyhow::Result<()> {
    let arguments = arguments::Arguments::parse();
    let url = std::env::var("OUTLAST_POSTGRES_URL").context("OUTLAST_POSTGRES_URL is not set")?;
    let store = Arc::new(PostgresProvider::new(&url).await?);
    let options = RuntimeOptions {
        orchestration_concurrency: 4,
        worker_concurrency: 4,
        dispatcher_min_poll_interval: Duration::from_millis(10),
        orchestrator_lock_timeout: Duration::from_secs(30),
        worker_lock_timeout: Duration::from_secs(30),
        ..Default::default()
    };
    duroxide_code::drive(store, options, arguments).await
}
