//! Waiting for a human, but not for ever: an event races a durable timer.
//!
//! One expense is approved by an event, another one is left alone until its deadline has passed. The loser of the race is
//! dropped, which cancels it. Run it with `cargo run --example approval`.
//!
//! Events are for those who wait: one that is raised before anybody waits is not kept. A client therefore looks at the
//! status before it raises (the example `chat` shows queues, which keep everything).

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{ActivityRegistry, Client, Either2, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus};
use serde::{Deserialize, Serialize};

const PATIENCE: Duration = Duration::from_secs(10);
const WAITING: &str = "waiting for approval";

#[derive(Serialize, Deserialize)]
struct Expense {
    what: String,
    deadline_ms: u64,
}

async fn expense(ctx: OrchestrationContext, expense: Expense) -> Result<String, String> {
    ctx.set_custom_status(WAITING);
    let approval = ctx.schedule_wait("approval");
    let deadline = ctx.schedule_timer(Duration::from_millis(expense.deadline_ms));
    match ctx.select2(approval, deadline).await {
        Either2::First(by) => Ok(format!("{} approved by {by}", expense.what)),
        Either2::Second(()) => Ok(format!("{} expired", expense.what)),
    }
}

/// The status and the subscription are committed together: who sees the status may raise the event.
async fn until_it_waits(client: &Client, instance: &str) -> anyhow::Result<()> {
    let status = client.wait_for_status_change(instance, 0, Duration::from_secs(1), PATIENCE).await?;
    let waits = matches!(&status, OrchestrationStatus::Running { custom_status: Some(text), .. } if text == WAITING);
    ensure!(waits, "{instance} does not wait: {status:?}");
    println!("{instance} is {WAITING}");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let provider = Arc::new(SqliteProvider::new_in_memory().await?);
    let orchestrations = OrchestrationRegistry::builder().register_typed("Expense", expense).build();
    let runtime =
        Runtime::start_with_store(provider.clone(), ActivityRegistry::builder().build(), orchestrations).await;
    let client = Client::new(provider);

    // A deadline of a week costs nothing: the timer is a row in the store.
    let chair = Expense { what: "a chair".to_owned(), deadline_ms: 7 * 24 * 3600 * 1000 };
    client.start_orchestration_typed("expense-1", "Expense", &chair).await?;
    until_it_waits(&client, "expense-1").await?;
    client.raise_event("expense-1", "approval", "Ada").await?;
    let outcome: String = client.wait_for_orchestration_typed("expense-1", PATIENCE).await?;
    println!("expense-1: {outcome}");

    let yacht = Expense { what: "a yacht".to_owned(), deadline_ms: 500 };
    client.start_orchestration_typed("expense-2", "Expense", &yacht).await?;
    let outcome: String = client.wait_for_orchestration_typed("expense-2", PATIENCE).await?;
    println!("expense-2: {outcome}");

    runtime.shutdown(None).await;
    Ok(())
}
