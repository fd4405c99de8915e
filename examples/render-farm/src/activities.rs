//! What workers do. Any worker has the code of all three; tags decide who runs which.

use outlast::{ActivityContext, ActivityRegistry};
use tokio::task::spawn_blocking;

use crate::mandelbrot;
use crate::picture::Picture;
use crate::plan::{Area, Piece, Plan};
use crate::results::{made, made_once};

/// Renders a tile. For the pool "gpu".
pub(crate) const RENDER: &str = "RenderTile";
/// Joins the tiles of the calling instance to a strip.
pub(crate) const JOIN: &str = "JoinStrip";
/// Joins the strips of the instances that it is told of to the picture.
pub(crate) const ASSEMBLE: &str = "AssemblePicture";

pub(crate) fn activities() -> ActivityRegistry {
    ActivityRegistry::builder()
        .register_typed(RENDER, async |_: ActivityContext, piece: Piece| {
            compute(move || mandelbrot::render(piece.plan, piece.area).to_text()).await.map_err(text)
        })
        .register_typed(JOIN, |ctx: ActivityContext, (plan, strip): (Plan, u32)| async move {
            join(ctx, plan, strip).await.map_err(text)
        })
        .register_typed(ASSEMBLE, |ctx: ActivityContext, (plan, strips): (Plan, Vec<String>)| async move {
            assemble(ctx, plan, strips).await.map_err(text)
        })
        .build()
}

async fn join(ctx: ActivityContext, plan: Plan, number: u32) -> anyhow::Result<String> {
    let tiles = made::<Piece>(&ctx.get_client(), ctx.instance_id(), RENDER).await?;
    compute(move || {
        let strip = plan.strip(number);
        let mut picture = Picture::new(strip.width, strip.height);
        for tile in tiles {
            let area = tile.input.area;
            picture.paste(&Picture::from_text(&tile.result)?, Area { y: area.y - strip.y, ..area })?;
        }
        picture.to_text()
    })
    .await
}

async fn assemble(ctx: ActivityContext, plan: Plan, instances: Vec<String>) -> anyhow::Result<String> {
    let mut strips = Vec::new();
    for instance in instances {
        strips.push(made_once(&ctx.get_client(), &instance, JOIN).await?);
    }
    compute(move || {
        let mut picture = Picture::new(plan.width, plan.height);
        for (number, strip) in (0..).zip(strips) {
            picture.paste(&Picture::from_text(&strip)?, plan.strip(number))?;
        }
        picture.to_text()
    })
    .await
}

/// Away from the threads that keep the worker's promises to the cluster.
async fn compute<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    spawn_blocking(work).await?
}

fn text(error: anyhow::Error) -> String {
    format!("{error:#}")
}
