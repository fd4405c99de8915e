//! A rolling upgrade: what runs stays on its version, continue-as-new and new starts take the latest.
//!
//! The first runtime has 1.0.0 only; the one that replaces it has 1.0.0 and 2.0.0, which adds a tax. The old code stays
//! registered as long as an execution runs on it. Run it with `cargo run --example versions`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus};

const PATIENCE: Duration = Duration::from_secs(10);

async fn invoices_1(ctx: OrchestrationContext, _: String) -> Result<String, String> {
    invoice(ctx, |net| net).await
}

/// Changed code under a new version: a changed 1.0.0 would not fit to the histories that 1.0.0 has written.
async fn invoices_2(ctx: OrchestrationContext, _: String) -> Result<String, String> {
    invoice(ctx, |net| net + net / 5).await
}

/// One month per execution; the next begins anew, on the version that is the latest then.
async fn invoice(ctx: OrchestrationContext, price: fn(u32) -> u32) -> Result<String, String> {
    let sent = ctx.get_kv_value("sent").unwrap_or_else(|| "nothing sent".to_owned());
    let version = ctx.orchestration_version();
    ctx.set_custom_status(format!("{sent}; next is {version}"));
    let month = ctx.dequeue_event("months").await;
    if month == "end" {
        return Ok(sent);
    }
    ctx.set_kv_value("sent", format!("{month} {} by {version}", price(100)));
    ctx.continue_as_new("").await
}

/// Shows the statuses from the one after `seen`, until there is one that says `text`; returns its version.
async fn show_until(client: &Client, instance: &str, seen: u64, text: &str) -> anyhow::Result<u64> {
    let mut seen = seen;
    loop {
        match client.wait_for_status_change(instance, seen, Duration::from_secs(1), PATIENCE).await? {
            OrchestrationStatus::Running { custom_status: Some(status), custom_status_version } => {
                println!("{instance}: {status}");
                seen = custom_status_version;
                if status.starts_with(text) {
                    return Ok(seen);
                }
            }
            other => bail!("{instance} waits for no month: {other:?}"),
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let provider = Arc::new(SqliteProvider::new_in_memory().await?);
    let client = Client::new(provider.clone());
    let activities = ActivityRegistry::builder().build();
    let old = OrchestrationRegistry::builder().register_versioned("Invoices", "1.0.0", invoices_1);
    let new = OrchestrationRegistry::builder()
        .register_versioned("Invoices", "1.0.0", invoices_1)
        .register_versioned("Invoices", "2.0.0", invoices_2);

    let runtime = Runtime::start_with_store(provider.clone(), activities.clone(), old.build()).await;
    client.start_orchestration("ada", "Invoices", "").await?;
    let mut seen = show_until(&client, "ada", 0, "nothing sent").await?;
    client.enqueue_event("ada", "months", "january").await?;
    seen = show_until(&client, "ada", seen, "january").await?;
    runtime.shutdown(None).await;

    println!("-- upgrade: 1.0.0 and 2.0.0");
    let runtime = Runtime::start_with_store(provider, activities, new.build()).await;
    client.start_orchestration("bob", "Invoices", "").await?;
    show_until(&client, "bob", 0, "nothing sent").await?;
    for month in ["february", "march"] {
        client.enqueue_event("ada", "months", month).await?;
        seen = show_until(&client, "ada", seen, month).await?;
    }

    runtime.shutdown(None).await;
    Ok(())
}
