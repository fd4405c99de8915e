//! `render`: the same picture by the same code in one process, on a database in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{Client, RuntimeOptions, TagFilter};

use crate::activities::{ASSEMBLE, activities};
use crate::orchestrations::{PICTURE, orchestrations};
use crate::picture::png_of_text;
use crate::plan::Plan;
use crate::results::made_once;

const PATIENCE: Duration = Duration::from_secs(24 * 3_600);

/// What to render, and where to put it.
#[derive(Args)]
pub(crate) struct Render {
    #[command(flatten)]
    plan: Plan,
    /// The PNG file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) async fn run(arguments: Render) -> anyhow::Result<()> {
    let png = render(arguments.plan).await?;
    let out = &arguments.out;
    std::fs::write(out, png).with_context(|| format!("{} cannot be written", out.display()))
}

/// The picture as PNG.
async fn render(plan: Plan) -> anyhow::Result<Vec<u8>> {
    let provider = Arc::new(SqliteProvider::new_in_memory().await?);
    let options = RuntimeOptions {
        worker_concurrency: std::thread::available_parallelism()?.get(),
        worker_tag_filter: TagFilter::Any,
        ..RuntimeOptions::default()
    };
    let runtime = Runtime::try_start(provider.clone(), activities(), orchestrations(), options).await?;
    let client = Client::new(provider);
    client.start_orchestration_typed("picture", PICTURE, &plan).await?;
    let () = client.wait_for_orchestration_typed("picture", PATIENCE).await?;
    let png = png_of_text(&made_once(&client, "picture", ASSEMBLE).await?)?;
    runtime.shutdown(None).await;
    Ok(png)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mandelbrot;
    use crate::plan::Area;

    #[tokio::test]
    async fn the_joined_tiles_are_the_picture() {
        let plan = Plan { width: 90, height: 70, tile: 32, iterations: 200 };
        let whole = Area { x: 0, y: 0, width: plan.width, height: plan.height };
        assert_eq!(render(plan).await.unwrap(), mandelbrot::render(plan, whole).to_png().unwrap());
    }
}
