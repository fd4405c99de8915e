//! An orchestration that runs for ever: each round is an execution of its own, begun with continue-as-new.
//!
//! The history of a round stays small however many rounds there are; what must survive is handed on as input or kept as
//! key-value state. This one stops after five rounds to let the program end; older rounds can be pruned.
//! Run it with `cargo run --example eternal`.

use std::sync::Arc;
use std::time::Duration;

use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, PruneOptions};

const PATIENCE: Duration = Duration::from_secs(10);
const ROUNDS: u64 = 5;

/// Stands for a reading of the world.
async fn measure(_: ActivityContext, round: u64) -> Result<u64, String> {
    Ok(20 + round * round % 7)
}

async fn monitor(ctx: OrchestrationContext, round: u64) -> Result<String, String> {
    let measured: u64 = ctx.schedule_activity_typed("Measure", &round).await?;
    let highest = ctx.get_kv_value_typed::<u64>("highest")?.unwrap_or_default().max(measured);
    ctx.set_kv_value_typed("highest", &highest);
    if round == ROUNDS {
        return Ok(format!("{highest} was the highest of {round} rounds"));
    }
    ctx.schedule_timer(Duration::from_millis(50)).await;
    // Nothing behind this line runs: the next round begins at the top, with this input.
    ctx.continue_as_new_typed(&(round + 1)).await
}

async fn show_executions(client: &Client) -> anyhow::Result<()> {
    for execution in client.list_executions("monitor").await? {
        let info = client.get_execution_info("monitor", execution).await?;
        let events = client.read_execution_history("monitor", execution).await?.len();
        println!("execution {execution}: {}, {events} events", info.status);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let provider = Arc::new(SqliteProvider::new_in_memory().await?);
    let activities = ActivityRegistry::builder().register_typed("Measure", measure).build();
    let orchestrations = OrchestrationRegistry::builder().register_typed("Monitor", monitor).build();
    let runtime = Runtime::start_with_store(provider.clone(), activities, orchestrations).await;

    let client = Client::new(provider);
    client.start_orchestration_typed("monitor", "Monitor", &1_u64).await?;
    let output: String = client.wait_for_orchestration_typed("monitor", PATIENCE).await?;
    println!("monitor ended: {output}");
    let kept: Option<u64> = client.get_kv_value_typed("monitor", "highest").await?;
    println!("kept as state: highest = {kept:?}");
    show_executions(&client).await?;

    let options = PruneOptions { keep_last: Some(2), ..PruneOptions::default() };
    client.prune_executions("monitor", options).await?;
    println!("after pruning: {:?}", client.list_executions("monitor").await?);

    runtime.shutdown(None).await;
    Ok(())
}
