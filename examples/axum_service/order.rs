//! The durable part of the service: it knows nothing of HTTP.

use outlast::{ActivityContext, OrchestrationContext};
use serde::{Deserialize, Serialize};

/// What a client orders.
#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) item: String,
}

pub(crate) async fn ship(_: ActivityContext, item: String) -> Result<String, String> {
    Ok(format!("{item} shipped"))
}

/// Registered without types, so that the output is plain text and not JSON.
pub(crate) async fn order(ctx: OrchestrationContext, input: String) -> Result<String, String> {
    let order: Order = serde_json::from_str(&input).map_err(|error| error.to_string())?;
    ctx.set_custom_status("waits for approval");
    // A queue keeps an approval that comes before this line; an event of `schedule_wait` would be gone.
    let by = ctx.dequeue_event("approvals").await;
    let shipped = ctx.schedule_activity("Ship", order.item).await?;
    Ok(format!("{shipped}, approved by {by}"))
}
