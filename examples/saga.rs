//! A saga: when a step fails, what was done before is undone, last first.
//!
//! A trip needs a flight, a hotel and a car. No car is to be had, so the hotel and then the flight are cancelled. A crash
//! in the middle would not leave the trip half booked: which steps are done is in the history, not in memory.
//! Run it with `cargo run --example saga`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus,
    RetryPolicy,
};

const PATIENCE: Duration = Duration::from_secs(10);

async fn book(_: ActivityContext, what: String) -> Result<String, String> {
    if what == "car" {
        println!("no {what} can be booked");
        return Err(format!("there is no {what} left"));
    }
    println!("booked   {what}");
    Ok(format!("{what}-77"))
}

async fn cancel(_: ActivityContext, booking: String) -> Result<String, String> {
    println!("canceled {booking}");
    Ok(booking)
}

async fn trip(ctx: OrchestrationContext, _: String) -> Result<String, String> {
    let mut booked = Vec::new();
    for what in ["flight", "hotel", "car"] {
        match ctx.schedule_activity("Book", what).await {
            Ok(booking) => booked.push(booking),
            Err(reason) => {
                let undone = undo(&ctx, booked).await?;
                return Err(format!("{reason}; undone: {undone}"));
            }
        }
    }
    Ok(booked.join(", "))
}

/// A compensation that fails leaves a mess that only a human can clear up, so each is tried more than once.
async fn undo(ctx: &OrchestrationContext, booked: Vec<String>) -> Result<String, String> {
    let mut undone = Vec::new();
    for booking in booked.into_iter().rev() {
        undone.push(ctx.schedule_activity_with_retry("Cancel", booking, RetryPolicy::new(5)).await?);
    }
    Ok(undone.join(", "))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let provider = Arc::new(SqliteProvider::new_in_memory().await?);
    let activities = ActivityRegistry::builder().register("Book", book).register("Cancel", cancel).build();
    let orchestrations = OrchestrationRegistry::builder().register("Trip", trip).build();
    let runtime = Runtime::start_with_store(provider.clone(), activities, orchestrations).await;

    let client = Client::new(provider);
    client.start_orchestration("trip-1", "Trip", "").await?;
    match client.wait_for_orchestration("trip-1", PATIENCE).await? {
        OrchestrationStatus::Failed { details, .. } => println!("trip-1 failed: {}", details.display_message()),
        other => bail!("the trip should have failed, and is {other:?}"),
    }

    runtime.shutdown(None).await;
    Ok(())
}
