//! Retries: a policy says how often, how long one attempt may take, and how long to wait in between.
//!
//! A flaky service answers at the third attempt; with two attempts the last error is the result; an attempt that takes too
//! long ends the whole at once. The delays are durable timers, and a warning is logged per retry.
//! Run it with `cargo run --example retry`.

use std::sync::Arc;
use std::time::Duration;

use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, BackoffStrategy, Client, OrchestrationContext, OrchestrationRegistry,
    RetryPolicy,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Fails twice. The key is the same for all attempts: a service that is given it can tell a repetition from a new request.
async fn flaky(ctx: ActivityContext, _: String) -> Result<String, String> {
    println!("attempt {} with key {}", ctx.attempt(), ctx.idempotency_key());
    if ctx.attempt() < 3 { Err("the line is busy".to_owned()) } else { Ok("answered".to_owned()) }
}

/// Takes a minute, unless nobody wants the result any more.
async fn slow(ctx: ActivityContext, _: String) -> Result<String, String> {
    tokio::select! {
        () = ctx.cancelled() => {
            println!("the slow activity was told to stop");
            Err("stopped".to_owned())
        }
        () = tokio::time::sleep(Duration::from_secs(60)) => Ok("done at last".to_owned()),
    }
}

/// Tells the outcome instead of failing with it, so that all three can be shown.
async fn call(ctx: OrchestrationContext, kind: String) -> Result<String, String> {
    let quick =
        BackoffStrategy::Exponential { base: Duration::from_millis(50), multiplier: 2.0, max: Duration::from_secs(1) };
    let (activity, policy) = match kind.as_str() {
        "patient" => ("Flaky", RetryPolicy::new(5).with_backoff(quick)),
        "impatient" => ("Flaky", RetryPolicy::new(2).with_backoff(BackoffStrategy::None)),
        "timeout" => ("Slow", RetryPolicy::new(5).with_timeout(Duration::from_millis(300))),
        other => return Err(format!("there is no policy for {other}")),
    };
    Ok(match ctx.schedule_activity_with_retry(activity, "", policy).await {
        Ok(answer) => format!("ok, {answer}"),
        Err(reason) => format!("error, {reason}"),
    })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let provider = Arc::new(SqliteProvider::new_in_memory().await?);
    let activities = ActivityRegistry::builder().register("Flaky", flaky).register("Slow", slow).build();
    let orchestrations = OrchestrationRegistry::builder().register_typed("Call", call).build();
    let runtime = Runtime::start_with_store(provider.clone(), activities, orchestrations).await;

    let client = Client::new(provider);
    for kind in ["patient", "impatient", "timeout"] {
        client.start_orchestration_typed(kind, "Call", &kind).await?;
        let outcome: String = client.wait_for_orchestration_typed(kind, PATIENCE).await?;
        println!("{kind}: {outcome}");
    }

    runtime.shutdown(None).await;
    Ok(())
}
