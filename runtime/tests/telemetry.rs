//! Telemetry as a scraper, a prober and a collector see it, over HTTP.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::telemetry::{self, Telemetry, TelemetryOptions};
use outlast::{
    ActivityContext, ActivityRegistry, BackoffStrategy, Client, OrchestrationContext, OrchestrationRegistry,
    OrchestrationStatus, RetryPolicy, RuntimeOptions, StartOptions, TagFilter,
};
use prost::Message;
use tracing::Instrument;

const PATIENCE: Duration = Duration::from_secs(30);

/// What the collector has received.
type Received = Arc<Mutex<Vec<Span>>>;

async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// A collector that keeps spans and takes metrics.
async fn collector() -> (SocketAddr, Received, Arc<Mutex<usize>>) {
    async fn spans(State(received): State<Received>, body: Bytes) {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        received.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
    }
    async fn metrics(State(count): State<Arc<Mutex<usize>>>, body: Bytes) {
        assert!(!body.is_empty());
        *count.lock().unwrap() += 1;
    }
    let (received, count) = (Received::default(), Arc::new(Mutex::new(0)));
    let traces = Router::new().route("/v1/traces", post(spans)).with_state(received.clone());
    let router = traces.merge(Router::new().route("/v1/metrics", post(metrics)).with_state(count.clone()));
    (serve(router).await, received, count)
}

/// Status code and body.
async fn get(address: SocketAddr, path: &'static str) -> (u16, String) {
    let ask = move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

/// Name with labels, and value, of each sample.
async fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    let (status, text) = get(address, "/metrics").await;
    assert_eq!(status, 200, "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    samples.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.clone()).and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{name} of {} is {other:?}", span.name),
    }
}

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
    OrchestrationRegistry::builder().register("Order", order).register("Deliver", deliver).build()
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

/// One process, two runtimes one after the other on one store in memory, a collector and a scraper over real HTTP.
#[tokio::test]
async fn one_trace_per_instance_and_numbers_for_all_of_it() {
    let (collector, received, exports) = collector().await;
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

    assert_eq!(get(node, "/livez").await, (200, "ok".to_owned()));
    assert_eq!(get(node, "/readyz").await, (200, "ready".to_owned()));
    // Turns that follow the outcome, such as the child's last answer, end before the numbers are compared.
    runtime.clone().shutdown(None).await;
    assert_eq!(get(node, "/livez").await.0, 200);
    assert_eq!(get(node, "/readyz").await, (503, "the node is stopping".to_owned()));

    let turns = turns_before + runtime.metrics_snapshot().turns;
    check_metrics(&scrape(node).await, turns);
    telemetry.flush().await.unwrap();
    assert!(*exports.lock().unwrap() > 0);
    check_trace(&received.lock().unwrap(), turns);
    received.lock().unwrap().clear();

    a_named_parent_is_kept(&store, &received, &telemetry).await;
    telemetry.shutdown().await.unwrap();
}

fn check_metrics(metrics: &BTreeMap<String, f64>, turns: u64) {
    let value = |name: &str| *metrics.get(name).unwrap_or_else(|| panic!("{name} is not among {metrics:#?}"));
    assert_eq!(value("outlast_turns_total"), turns as f64);
    assert_eq!(value("outlast_commit_group_size_sum"), turns as f64);
    assert!(value("outlast_commit_group_size_bucket{le=\"512\"}") >= 1.0);
    assert_eq!(value("outlast_commit_seconds_count"), value("outlast_commit_group_size_count"));
    assert!(value("outlast_commit_seconds_sum") > 0.0);
    for (tag, count) in [("=default", 2.0), ("dock", 1.0)] {
        assert_eq!(value(&format!("outlast_activities_dispatched_total{{tag=\"{tag}\"}}")), count);
        assert_eq!(value(&format!("outlast_queue_wait_seconds_count{{tag=\"{tag}\"}}")), count);
    }
    assert_eq!(value("outlast_activity_retries_total{activity=\"Charge\"}"), 1.0);
    assert_eq!(value("outlast_activity_seconds_count{activity=\"Charge\"}"), 2.0);
    assert_eq!(value("outlast_activity_seconds_count{activity=\"Ship\"}"), 1.0);
    // Both runtimes took all shards.
    assert_eq!(value("outlast_shard_moves_total"), 128.0);
    assert_eq!(value("outlast_warm_instances"), 0.0);
    assert_eq!(value("outlast_mailbox_depth"), 0.0);
}

fn check_trace(spans: &[Span], turns: u64) {
    let traces: BTreeSet<_> = spans.iter().map(|span| &span.trace_id).collect();
    assert_eq!(traces.len(), 1, "{spans:#?}");
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let parent = |span: &Span| spans.iter().find(|other| other.span_id == span.parent_span_id).unwrap();
    assert_eq!(named("request").len(), 1);
    let start = named("start orchestration");
    assert_eq!((start.len(), &parent(start[0]).name[..]), (1, "request"));
    // A turn that was committed has one span, and a replay none.
    let turn_spans = named("orchestration turn");
    assert_eq!(turn_spans.len() as u64, turns);
    let of =
        |instance: &str| turn_spans.iter().filter(|span| attribute(span, "instance") == instance).collect::<Vec<_>>();
    assert!(of("order").iter().all(|turn| parent(turn).span_id == start[0].span_id));
    let executions: BTreeSet<_> = of("order").iter().map(|turn| attribute(turn, "execution")).collect();
    assert_eq!(executions, BTreeSet::from(["1".to_owned(), "2".to_owned()]));
    // A child belongs to the turn that started it.
    let children: Vec<_> = turn_spans.iter().filter(|span| attribute(span, "orchestration") == "Deliver").collect();
    assert!(!children.is_empty());
    assert!(children.iter().all(|turn| attribute(parent(turn), "orchestration") == "Order"));

    let activities = named("activity");
    assert!(activities.iter().all(|activity| parent(activity).name == "orchestration turn"));
    let mut attempts: Vec<_> =
        activities.iter().map(|span| (attribute(span, "activity"), attribute(span, "attempt"))).collect();
    attempts.sort();
    let expected = [("Charge", "1"), ("Charge", "2"), ("Ship", "1")];
    assert_eq!(attempts, expected.map(|(name, attempt)| (name.to_owned(), attempt.to_owned())));
    for span in &activities {
        assert!(attribute(span, "worker").starts_with("node-"));
        assert!(!attribute(span, "instance").is_empty() && !attribute(span, "execution").is_empty());
    }
    assert!(named("card terminal").iter().all(|span| parent(span).name == "activity"));
    assert_eq!(named("card terminal").len(), 2);
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
    let spans = received.lock().unwrap();
    let names: BTreeSet<_> = spans.iter().map(|span| &span.name[..]).collect();
    assert_eq!(names, BTreeSet::from(["activity", "orchestration turn"]));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(spans.iter().all(|span| hex(&span.trace_id) == "0af7651916cd43dd8448eb211c80319c"));
    let turns = spans.iter().filter(|span| span.name == "orchestration turn");
    assert!(turns.into_iter().all(|span| hex(&span.parent_span_id) == "b7ad6b7169203331"));
}
