//! A process with telemetry: this test binary starts itself again, as a client, an orchestrator or a worker.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use outlast::providers::cluster::{ClusterOptions, ClusterProvider};
use outlast::runtime::Runtime;
use outlast::telemetry::{Telemetry, TelemetryOptions};
use outlast::{
    ActivityContext, ActivityRegistry, BackoffStrategy, Client, OrchestrationContext, OrchestrationRegistry,
    RetryPolicy, RuntimeOptions, TagFilter,
};
use tracing::Instrument;

const SETTINGS: &str = "OUTLAST_TEST_TELEMETRY";
/// What stands before the address in a node's output.
const GREETING: &str = "telemetry on ";
const LEASE: Duration = Duration::from_secs(2);
/// Silence after which the broker hands a worker's item to another one.
const ACK_WAIT: Duration = Duration::from_secs(2);
/// How long the activity `Pack` takes.
const PACKING: Duration = Duration::from_millis(1_500);
/// Longer than anything that runs when a process is told to end.
const DRAIN_MS: u64 = 20_000;

/// The servers, the namespace and the collector of a test.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) postgres: String,
    pub(crate) nats: String,
    pub(crate) namespace: String,
    pub(crate) collector: SocketAddr,
}

/// A process; killed with its owner.
pub(crate) struct Node {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Cluster {
    pub(crate) async fn client(&self) -> Client {
        Client::new(self.provider().await)
    }

    async fn provider(&self) -> Arc<ClusterProvider> {
        let mut options = ClusterOptions::new(&self.postgres, &self.nats).namespace(&self.namespace).lease(LEASE);
        options.postgres.connections = 4;
        options.nats.ack_wait = ACK_WAIT;
        Arc::new(ClusterProvider::connect(options).await.unwrap())
    }

    /// Starts a process that is a `orchestrator`, a `worker`, a `stuck-worker` whose shipments never end, or a `client` that
    /// starts `what` under an id of the same name and ends.
    pub(crate) fn process(&self, role: &str, what: &str) -> Node {
        let collector = self.collector.to_string();
        let settings = [&self.postgres, &self.nats, &self.namespace, &collector, role, what].join(" ");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "node::child_process", "--nocapture"])
            .env(SETTINGS, settings)
            // Milliseconds until spans are exported: what a killed process has ended shall not be lost to this test.
            .env("OTEL_BSP_SCHEDULE_DELAY", "50")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Node { child, stdout }
    }
}

impl Node {
    /// Where it serves its telemetry; by then it has started.
    pub(crate) fn address(&mut self) -> SocketAddr {
        let mut line = String::new();
        while self.stdout.read_line(&mut line).unwrap() > 0 {
            if let Some(at) = line.find(GREETING) {
                return line[at + GREETING.len()..].trim().parse().unwrap();
            }
            line.clear();
        }
        panic!("the process has ended: {:?}", self.child.wait());
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn tell_to_end(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn wait(&mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn activities(stuck: bool) -> ActivityRegistry {
    let charge = |ctx: ActivityContext, _: String| async move {
        if ctx.attempt() == 1 { Err("busy".to_owned()) } else { Ok("charged".to_owned()) }
    };
    let ship = move |_: ActivityContext, _: String| async move {
        if stuck {
            std::future::pending::<()>().await;
        }
        Ok("shipped".to_owned())
    };
    let pack = |_: ActivityContext, _: String| async move {
        tokio::time::sleep(PACKING).await;
        Ok("packed".to_owned())
    };
    ActivityRegistry::builder().register("Charge", charge).register("Ship", ship).register("Pack", pack).build()
}

fn orchestrations() -> OrchestrationRegistry {
    let order = |ctx: OrchestrationContext, _: String| async move {
        let policy = RetryPolicy::new(3).with_backoff(BackoffStrategy::Fixed { delay: Duration::from_millis(5) });
        ctx.schedule_activity_with_retry("Charge", "", policy).await?;
        ctx.set_custom_status("charged");
        ctx.schedule_wait("packed").await;
        ctx.schedule_sub_orchestration("Deliver", "").await
    };
    let deliver =
        |ctx: OrchestrationContext, _: String| async move { ctx.schedule_activity("Ship", "").with_tag("dock").await };
    let parcel = |ctx: OrchestrationContext, _: String| async move { ctx.schedule_activity("Pack", "").await };
    let builder = OrchestrationRegistry::builder().register("Order", order);
    builder.register("Deliver", deliver).register("Parcel", parcel).build()
}

/// The child: until it is told to end, or killed.
#[tokio::test(flavor = "multi_thread")]
async fn child_process() {
    let Ok(settings) = std::env::var(SETTINGS) else { return };
    let words: Vec<&str> = settings.split(' ').collect();
    let [postgres, nats, namespace, collector, role, what] = words[..] else { panic!("{settings}") };
    let (postgres, nats, namespace) = (postgres.to_owned(), nats.to_owned(), namespace.to_owned());
    let cluster = Cluster { postgres, nats, namespace, collector: collector.parse().unwrap() };
    let telemetry = Telemetry::install(TelemetryOptions {
        service_name: role.trim_start_matches("stuck-").to_owned(),
        otlp_endpoint: Some(format!("http://{collector}")),
        metrics_every: Duration::from_millis(200),
        ..TelemetryOptions::default()
    })
    .unwrap();
    let provider = cluster.provider().await;
    if role == "client" {
        let client = Client::new(provider);
        let start = client.start_orchestration(what, what, "");
        start.instrument(tracing::info_span!("request")).await.unwrap();
    } else {
        serve(provider, &telemetry, role).await;
    }
    telemetry.shutdown().await.unwrap();
}

async fn serve(provider: Arc<ClusterProvider>, telemetry: &Telemetry, role: &str) {
    let mut options = RuntimeOptions {
        worker_concurrency: if role == "orchestrator" { 0 } else { 4 },
        worker_tag_filter: TagFilter::default_and(["dock"]),
        worker_node_id: Some(role.to_owned()),
        // Nothing stays warm, so every turn replays.
        passivate_after: Duration::ZERO,
        ..RuntimeOptions::default()
    };
    options.limits.warm_instances_max = 1;
    let code = if role == "orchestrator" { orchestrations() } else { OrchestrationRegistry::default() };
    let runtime = Runtime::start_with_options(provider, activities(role == "stuck-worker"), code, options).await;
    println!("{GREETING}{}", crate::collector::serve(telemetry.router(&runtime)).await);
    // Standard input ends when the process is told to end, and when its owner has died.
    let told = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    told.await.unwrap().unwrap();
    runtime.shutdown(Some(DRAIN_MS)).await;
}
