//! A conversation with a running instance: messages in through a queue, replies out through the custom status.
//!
//! A queue keeps messages in order until they are taken, also those that come before anybody waits. A change of the custom
//! status is pushed to the client; its version says which one was seen last, so no reply is taken twice.
//! Run it with `cargo run --example chat`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Stands for a language model, or for whatever else knows answers.
async fn answer(_: ActivityContext, message: String) -> Result<String, String> {
    let reversed: String = message.chars().rev().collect();
    Ok(format!("{message} backwards is {reversed}"))
}

async fn chat(ctx: OrchestrationContext, _: String) -> Result<String, String> {
    let mut answered = 0;
    loop {
        let message = ctx.dequeue_event("messages").await;
        if message == "bye" {
            return Ok(format!("{answered} messages answered"));
        }
        let reply = ctx.schedule_activity("Answer", message).await?;
        ctx.set_custom_status(reply);
        answered += 1;
    }
}

/// Sends one message and waits for the status to change. Returns the version of the status that was seen.
async fn say(client: &Client, message: &str, seen: u64) -> anyhow::Result<u64> {
    println!("me:  {message}");
    client.enqueue_event("chat-1", "messages", message).await?;
    // Between pushes the client looks for itself this often.
    let poll = Duration::from_secs(1);
    match client.wait_for_status_change("chat-1", seen, poll, PATIENCE).await? {
        OrchestrationStatus::Running { custom_status: Some(reply), custom_status_version } => {
            println!("bot: {reply}");
            Ok(custom_status_version)
        }
        other => bail!("chat-1 does not answer: {other:?}"),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let provider = Arc::new(SqliteProvider::new_in_memory().await?);
    let activities = ActivityRegistry::builder().register("Answer", answer).build();
    let orchestrations = OrchestrationRegistry::builder().register("Chat", chat).build();
    let runtime = Runtime::start_with_store(provider.clone(), activities, orchestrations).await;

    let client = Client::new(provider);
    client.start_orchestration("chat-1", "Chat", "").await?;
    let mut seen = 0;
    for message in ["drawer", "stressed", "level"] {
        seen = say(&client, message, seen).await?;
    }
    client.enqueue_event("chat-1", "messages", "bye").await?;
    match client.wait_for_orchestration("chat-1", PATIENCE).await? {
        OrchestrationStatus::Completed { output, .. } => println!("chat-1 ended: {output}"),
        other => bail!("chat-1 did not end well: {other:?}"),
    }

    runtime.shutdown(None).await;
    Ok(())
}
