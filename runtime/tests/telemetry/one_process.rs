//! One process: two runtimes one after the other on one store in memory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::telemetry::{self, Telemetry, TelemetryOptions};
use outlast::{
    ActivityContext, ActivityRegistry, BackoffStrategy, Client, OrchestrationContext, OrchestrationRegistry,
    OrchestrationStatus, RetryPolicy, RuntimeOptions, StartOptions, TagFilter,
};
use tracing::Instrument;

use crate::collector::{PATIENCE, Received, Scrape, Trace, collector, get, serve};

fn activities() -> ActivityRegistry {
    let charge = |ctx: ActivityContext, _: String| async move {
        let inner = tracing::info_span!("card terminal");
        async { if ctx.attempt() == 1 { Err("busy".to_owned()) } else { Ok("charged".to_owned()) } }
            .instrument(inner)
            .await
    };
    let ship = |_: ActivityContext, _: String| async move { Ok("shipped".to_owned()) };
    ActivityRegistry::builder().register("Charge", charge).register("Ship", ship).build()
}

fn orchestrations() -> OrchestrationRegistry {
    let order = |ctx: OrchestrationContext, step: String| async move {
        if step == "pay" {
            let policy = RetryPolicy::new(3).with_backoff(BackoffStrategy::Fixed { delay: Duration::from_millis(5) });
            ctx.schedule_activity_with_retry("Charge", "", policy).await?;
            return ctx.continue_as_new("deliver").await;
        }
        ctx.schedule_wait("packed").await;
        ctx.schedule_sub_orchestration("Deliver", "").await
    };
    let deliver =
        |ctx: OrchestrationContext, _: String| async move { ctx.schedule_activity("Ship", "").with_tag("dock").await };
    // Activities that nobody takes, each with a tag of its own.
    let scatter = |ctx: OrchestrationContext, tags: String| async move {
        let tags = tags.parse().map_err(|_| "a number")?;
        let lost: Vec<_> =
            (0..tags).map(|tag: u32| ctx.schedule_activity("Ship", "").with_tag(format!("t{tag}"))).collect();
        ctx.schedule_timer(Duration::from_millis(1)).await;
        drop(lost);
        Ok(String::new())
    };
    let builder = OrchestrationRegistry::builder().register("Order", order).register("Deliver", deliver);
    builder.register("Scatter", scatter).build()
}

/// Nothing stays warm, so every turn replays.
fn options() -> RuntimeOptions {
    let mut options =
        RuntimeOptions { worker_tag_filter: TagFilter::default_and(["dock"]), ..RuntimeOptions::default() };
    options.limits.warm_instances_max = 1;
    options.passivate_after = Duration::ZERO;
    options
}

/// Runs an order to its end; returns the runtime that ended it, and how many turns both runtimes committed.
async fn run_order(store: &Arc<SqliteProvider>) -> (Arc<Runtime>, u64) {
    let client = Client::new(store.clone());
    let first = Runtime::start_with_options(store.clone(), activities(), orchestrations(), options()).await;
    let start = client.start_orchestration("order", "Order", "pay").instrument(tracing::info_span!("request"));
    start.await.unwrap();
    while !matches!(client.get_orchestration_status("order").await.unwrap(), OrchestrationStatus::Running { .. })
        || client.get_instance_info("order").await.unwrap().current_execution_id < 2
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The second runtime has nothing in memory: it replays.
    first.clone().shutdown(None).await;
    let turns = first.metrics_snapshot().turns;
    let second = Runtime::start_with_options(store.clone(), activities(), orchestrations(), options()).await;
    client.raise_event("order", "packed", "").await.unwrap();
    let status = client.wait_for_orchestration("order", PATIENCE).await.unwrap();
    assert!(matches!(&status, OrchestrationStatus::Completed { output, .. } if output == "shipped"), "{status:?}");
    let snapshot = second.metrics_snapshot();
    assert!(snapshot.hydrations >= 2, "{snapshot:?}");
    (second, turns)
}

/// A collector and a scraper, over real HTTP.
#[tokio::test]
async fn one_trace_per_instance_and_numbers_for_all_of_it() {
    let (collector, received) = collector().await;
    let telemetry = Telemetry::install(TelemetryOptions {
        service_name: "shop".to_owned(),
        otlp_endpoint: Some(format!("http://{collector}")),
        ..TelemetryOptions::default()
    })
    .unwrap();
    assert!(matches!(Telemetry::install(TelemetryOptions::default()), Err(telemetry::Error::Installed)));
    let store = Arc::new(SqliteProvider::new_in_memory().await.unwrap());
    let (runtime, turns_before) = run_order(&store).await;
    let node = serve(telemetry.router(&runtime)).await;
    let only_client = serve(telemetry.client_router(&Client::new(store.clone()))).await;

    for address in [node, only_client] {
        assert_eq!(get(address, "/livez").await, (200, "ok".to_owned()));
        assert_eq!(get(address, "/readyz").await, (200, "ready".to_owned()));
    }
    // Turns that follow the outcome, such as the child's last answer, end before the numbers are compared.
    runtime.clone().shutdown(None).await;
    assert_eq!(get(node, "/livez").await.0, 200);
    assert_eq!(get(node, "/readyz").await, (503, "the node is stopping".to_owned()));

    let turns = turns_before + runtime.metrics_snapshot().turns;
    check_metrics(&Scrape::of(node).await, turns);
    telemetry.flush().await.unwrap();
    assert!(received.metrics.lock().unwrap().contains(&("shop".to_owned(), "outlast.turns".to_owned())));
    check_trace(&Trace(std::mem::take(&mut received.spans.lock().unwrap())), turns);

    a_named_parent_is_kept(&store, &received, &telemetry).await;
    tags_without_end_are_counted_together(&store, only_client).await;
    what_nobody_serves_is_counted(&store, only_client).await;
    telemetry.shutdown().await.unwrap();
}

fn check_metrics(metrics: &Scrape, turns: u64) {
    let value = |name: &str| metrics.value(name);
    assert_eq!(value("outlast_turns_total"), turns as f64);
    assert_eq!(value("outlast_commit_group_size_sum"), turns as f64);
    assert!(value("outlast_commit_group_size_bucket{le=\"512\"}") >= 1.0);
    assert_eq!(value("outlast_commit_duration_seconds_count"), value("outlast_commit_group_size_count"));
    assert!(value("outlast_commit_duration_seconds_sum") > 0.0);
    for (tag, count) in [("=default", 2.0), ("dock", 1.0)] {
        assert_eq!(value(&format!("outlast_activities_dispatched_total{{tag=\"{tag}\"}}")), count);
        assert_eq!(value(&format!("outlast_queue_wait_seconds_count{{tag=\"{tag}\"}}")), count);
    }
    assert_eq!(value("outlast_activity_retries_total{activity=\"Charge\"}"), 1.0);
    assert_eq!(value("outlast_activity_duration_seconds_count{activity=\"Charge\"}"), 2.0);
    assert_eq!(value("outlast_activity_duration_seconds_count{activity=\"Ship\"}"), 1.0);
    // Both runtimes took all shards.
    assert_eq!(value("outlast_shard_moves_total"), 128.0);
    assert_eq!(value("outlast_warm_instances"), 0.0);
    assert_eq!(value("outlast_mailbox_depth"), 0.0);
}

fn check_trace(trace: &Trace, turns: u64) {
    trace.check("Order");
    // A turn that was committed has one span, and a replay none.
    assert_eq!(trace.named("orchestration turn ").len() as u64, turns, "{:?}", trace.names());
    let executions: BTreeSet<_> =
        trace.named("orchestration turn Order").iter().map(|turn| turn.attribute("outlast.execution")).collect();
    assert_eq!(executions, BTreeSet::from(["1".to_owned(), "2".to_owned()]));
    assert!(!trace.named("orchestration turn Deliver").is_empty());

    let expected = [("Charge", "1"), ("Charge", "2"), ("Ship", "1")];
    assert_eq!(trace.attempts(), expected.map(|(name, attempt)| (name.to_owned(), attempt.to_owned())));
    for attempt in trace.named("activity ") {
        assert!(attempt.attribute("outlast.worker").starts_with("node-"));
        let status = attempt.span.status.clone().unwrap_or_default();
        let failed = attempt.span.name == "activity Charge" && attempt.attribute("outlast.attempt") == "1";
        assert_eq!((status.code, &status.message[..]), if failed { (2, "busy") } else { (0, "") }, "{attempt:?}");
    }
    let inner = trace.named("card terminal");
    assert_eq!(inner.len(), 2);
    assert!(inner.iter().all(|span| trace.parent(span).span.name == "activity Charge"));
    assert_eq!(trace.0.len(), 1 + 1 + turns as usize + 3 + 2, "{:?}", trace.names());
}

/// A caller that names the parent itself gets it, whatever span is current.
async fn a_named_parent_is_kept(store: &Arc<SqliteProvider>, received: &Received, telemetry: &Telemetry) {
    let client = Client::new(store.clone());
    let runtime = Runtime::start_with_options(store.clone(), activities(), orchestrations(), options()).await;
    let start = StartOptions {
        instance: "named".to_owned(),
        orchestration: "Deliver".to_owned(),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        ..StartOptions::default()
    };
    client.start_with(start).await.unwrap();
    client.wait_for_orchestration("named", PATIENCE).await.unwrap();
    runtime.shutdown(None).await;
    telemetry.flush().await.unwrap();
    let trace = Trace(std::mem::take(&mut received.spans.lock().unwrap()));
    let names: BTreeSet<_> = trace.names().into_keys().collect();
    assert_eq!(names, BTreeSet::from(["activity Ship", "orchestration turn Deliver"]));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(trace.0.iter().all(|exported| hex(&exported.span.trace_id) == "0af7651916cd43dd8448eb211c80319c"));
    let turns = trace.named("orchestration turn ");
    assert!(turns.iter().all(|turn| hex(&turn.span.parent_span_id) == "b7ad6b7169203331"));
}

/// Tags are the users': a metric tells so many apart, and no more.
async fn tags_without_end_are_counted_together(store: &Arc<SqliteProvider>, metrics: std::net::SocketAddr) {
    let runtime = Runtime::start_with_options(store.clone(), activities(), orchestrations(), options()).await;
    let client = Client::new(store.clone());
    client.start_orchestration("many", "Scatter", "300").await.unwrap();
    client.wait_for_orchestration("many", PATIENCE).await.unwrap();
    runtime.shutdown(None).await;
    let scrape = Scrape::of(metrics).await;
    // The default and "dock" are among the 200.
    assert_eq!(scrape.value("outlast_activities_dispatched_total{otel_metric_overflow=\"true\"}"), 300.0 - 198.0);
}

/// A tag and an orchestration that nobody has.
async fn what_nobody_serves_is_counted(store: &Arc<SqliteProvider>, metrics: std::net::SocketAddr) {
    let options = RuntimeOptions { worker_tag_filter: TagFilter::DefaultOnly, ..options() };
    let runtime = Runtime::start_with_options(store.clone(), activities(), orchestrations(), options).await;
    let client = Client::new(store.clone());
    client.start_orchestration("stuck", "Deliver", "").await.unwrap();
    client.start_orchestration("unknown", "Missing", "").await.unwrap();
    let served = async |count: f64| {
        while Scrape::of(metrics).await.value("outlast_unserved") != count {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, served(2.0)).await.expect("both are counted");
    client.cancel_instance("stuck", "enough").await.unwrap();
    tokio::time::timeout(PATIENCE, served(1.0)).await.expect("one is no longer waited for");
    runtime.shutdown(None).await;
}
