//! The order of the work: tiles in the pool "gpu", a strip when its tiles are there, the picture when all strips are.

use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::try_join_all;
use outlast::{OrchestrationContext, OrchestrationRegistry, RetryPolicy};
use serde::{Deserialize, Serialize};

use crate::activities::{ASSEMBLE, JOIN, RENDER};
use crate::plan::Plan;

/// Renders a picture; its input is a [`Plan`].
pub(crate) const PICTURE: &str = "Picture";
/// Renders one strip of it.
pub(crate) const STRIP: &str = "Strip";
/// The pool that renders.
pub(crate) const GPU: &str = "gpu";
/// Of activities that only read what is stored: an error is a moment's trouble.
const ATTEMPTS_MAX: u32 = 5;

/// The custom status of a picture. That of a strip is the number of its finished tiles.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) tiles: u32,
    pub(crate) strips: u32,
    pub(crate) strips_done: u32,
}

pub(crate) fn orchestrations() -> OrchestrationRegistry {
    OrchestrationRegistry::builder().register_typed(PICTURE, picture).register_typed(STRIP, strip).build()
}

/// The instance of a picture's strip.
pub(crate) fn strip_id(picture: &str, number: u32) -> String {
    format!("{picture}-strip-{number}")
}

async fn picture(ctx: OrchestrationContext, plan: Plan) -> Result<(), String> {
    let done = AtomicU32::new(0);
    let report = |strips_done| {
        let progress = Progress { tiles: plan.tile_count(), strips: plan.strip_count(), strips_done };
        ctx.set_custom_status(serde_json::to_string(&progress).expect("numbers are JSON"));
    };
    report(0);
    let ids: Vec<_> = (0..plan.strip_count()).map(|number| strip_id(&ctx.instance_id(), number)).collect();
    let strips = (0..).zip(&ids).map(|(number, id)| {
        let strip = ctx.schedule_sub_orchestration_with_id_typed::<_, ()>(STRIP, id, &(plan, number));
        async {
            strip.await?;
            report(done.fetch_add(1, Ordering::Relaxed) + 1);
            Ok::<_, String>(())
        }
    });
    try_join_all(strips.collect::<Vec<_>>()).await?;
    let policy = RetryPolicy::new(ATTEMPTS_MAX);
    let _stored: String = ctx.schedule_activity_with_retry_typed(ASSEMBLE, &(plan, ids), policy).await?;
    Ok(())
}

async fn strip(ctx: OrchestrationContext, (plan, number): (Plan, u32)) -> Result<(), String> {
    let done = AtomicU32::new(0);
    let tiles = plan.pieces(number).map(|piece| {
        let tile = ctx.schedule_activity_typed::<_, String>(RENDER, &piece).with_tag(GPU);
        async {
            tile.await?;
            ctx.set_custom_status((done.fetch_add(1, Ordering::Relaxed) + 1).to_string());
            Ok::<_, String>(())
        }
    });
    try_join_all(tiles.collect::<Vec<_>>()).await?;
    let policy = RetryPolicy::new(ATTEMPTS_MAX);
    let _stored: String = ctx.schedule_activity_with_retry_typed(JOIN, &(plan, number), policy).await?;
    Ok(())
}
