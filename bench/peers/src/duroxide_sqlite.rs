//! The workloads on the duroxide crate with its SQLite provider, 2 + 2 dispatchers and a poll of 10 ms.
//!
//! Its provider commits with `synchronous = NORMAL`.

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

use clap::Parser;
use duroxide::providers::sqlite::SqliteProvider;
use duroxide::runtime::RuntimeOptions;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = arguments::Arguments::parse();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("db");
    std::fs::File::create(&file)?;
    let store = Arc::new(SqliteProvider::new(&format!("sqlite:{}", file.display()), None).await?);
    let options = RuntimeOptions { dispatcher_min_poll_interval: Duration::from_millis(10), ..Default::default() };
    duroxide_code::drive(store, options, arguments).await
}
