//! A node as a process of its own: this test binary starts itself again, and runs mixed work until it is killed.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outlast::providers::cluster::{ClusterOptions, ClusterProvider};
use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, Client, EventKind, OrchestrationContext, OrchestrationRegistry,
    OrchestrationStatus, RuntimeOptions, TagFilter,
};

pub(crate) const LEASE: Duration = Duration::from_secs(2);
const ACK_WAIT: Duration = Duration::from_secs(3);
/// Longest wait of a test for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const SETTINGS: &str = "OUTLAST_TEST_NODE";
/// The filter of what node processes log to the test's own output, as of `RUST_LOG`; they log nothing without it.
const LOG: &str = "OUTLAST_TEST_LOG";

/// A cluster of the test's own, and how to reach it.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) postgres: String,
    pub(crate) nats: String,
    pub(crate) namespace: String,
    pub(crate) lease: Duration,
    /// How long the broker waits before it gives a silent worker's item to another.
    pub(crate) ack_wait: Duration,
}

/// What a node process does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Orchestrator,
    Worker,
    Both,
}

impl Cluster {
    /// On these servers.
    pub(crate) fn on(postgres: &str, nats: &str) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
        let namespace = format!("f{}_{now}", std::process::id());
        Self { postgres: postgres.to_owned(), nats: nats.to_owned(), namespace, lease: LEASE, ack_wait: ACK_WAIT }
    }

    /// On the servers that the environment names.
    pub(crate) fn shared() -> Self {
        let url = |name| {
            std::env::var(name).unwrap_or_else(|_| panic!("set {name}, or run ./dev test, which starts the servers"))
        };
        Self::on(&url("OUTLAST_POSTGRES_URL"), &url("OUTLAST_NATS_URL"))
    }

    /// As a child process is told of it.
    pub(crate) fn to_words(&self) -> String {
        let (lease, ack_wait) = (self.lease.as_millis(), self.ack_wait.as_millis());
        format!("{} {} {} {lease} {ack_wait}", self.postgres, self.nats, self.namespace)
    }

    /// The cluster, and the words that follow.
    pub(crate) fn from_words(words: &str) -> (Self, Vec<&str>) {
        let mut words = words.split(' ');
        let mut next = || words.next().unwrap().to_owned();
        let (postgres, nats, namespace) = (next(), next(), next());
        let [lease, ack_wait] = [next(), next()].map(|ms| Duration::from_millis(ms.parse().unwrap()));
        (Self { postgres, nats, namespace, lease, ack_wait }, words.collect())
    }

    pub(crate) async fn provider(&self) -> Arc<ClusterProvider> {
        let mut options = ClusterOptions::new(&self.postgres, &self.nats).namespace(&self.namespace).lease(self.lease);
        options.postgres.connections = 4;
        options.nats.ack_wait = self.ack_wait;
        Arc::new(ClusterProvider::connect(options).await.unwrap())
    }

    pub(crate) async fn client(&self) -> Client {
        Client::new(self.provider().await)
    }

    /// A runtime in this very process.
    pub(crate) async fn runtime(&self, role: Role) -> Arc<Runtime> {
        run(self.provider().await, role).await
    }

    /// A runtime in a process of its own.
    pub(crate) fn process(&self, role: Role) -> Node {
        let role = match role {
            Role::Orchestrator => "orchestrator",
            Role::Worker => "worker",
            Role::Both => "both",
        };
        let settings = format!("{} {role}", self.to_words());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "node::child_process", "--nocapture"])
            .env(SETTINGS, settings)
            .stdout(Stdio::null())
            .stderr(if std::env::var_os(LOG).is_some() { Stdio::inherit() } else { Stdio::null() })
            .spawn()
            .unwrap();
        Node { child }
    }
}

/// A node process, killed with its owner.
pub(crate) struct Node {
    child: Child,
}

impl Node {
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(signal).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

async fn run(provider: Arc<ClusterProvider>, role: Role) -> Arc<Runtime> {
    let options = RuntimeOptions {
        worker_concurrency: if role == Role::Orchestrator { 0 } else { 32 },
        worker_tag_filter: TagFilter::DefaultOnly,
        activity_cancellation_grace_period: Duration::from_millis(500),
        ..RuntimeOptions::default()
    };
    let orchestrations = if role == Role::Worker { OrchestrationRegistry::default() } else { orchestrations() };
    Runtime::start_with_options(provider, activities(), orchestrations, options).await
}

fn activities() -> ActivityRegistry {
    ActivityRegistry::builder()
        .register("Echo", |_: ActivityContext, input: String| async move { Ok(input) })
        .register("Slow", |_: ActivityContext, input: String| async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(input)
        })
        .register("UntilCancelled", |ctx: ActivityContext, told: String| async move {
            ctx.get_client().raise_event(&told, "begun", "").await.map_err(|error| error.to_string())?;
            ctx.cancelled().await;
            ctx.get_client()
                .raise_event(&told, "cancelled", wall_ms().to_string())
                .await
                .map_err(|error| error.to_string())?;
            Ok(String::new())
        })
        .build()
}

fn orchestrations() -> OrchestrationRegistry {
    OrchestrationRegistry::builder()
        .register("Chain", |ctx: OrchestrationContext, input: String| async move {
            let mut value = input;
            for step in 0..6 {
                let name = if step == 3 { "Slow" } else { "Echo" };
                value = ctx.schedule_activity(name, format!("{value}.")).await?;
            }
            Ok(value)
        })
        .register("Timer", |ctx: OrchestrationContext, input: String| async move {
            ctx.schedule_timer(Duration::from_millis(700)).await;
            ctx.schedule_activity("Echo", input).await
        })
        .register("Parent", |ctx: OrchestrationContext, input: String| async move {
            let children = (0..2).map(|n| ctx.schedule_sub_orchestration("Chain", format!("{input}{n}"))).collect();
            Ok(ctx.join(children).await.into_iter().collect::<Result<Vec<_>, _>>()?.join(" "))
        })
        .register("Hold", |ctx: OrchestrationContext, told: String| async move {
            ctx.schedule_activity("UntilCancelled", told).await
        })
        .register("Witness", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_wait("begun").await;
            ctx.set_custom_status("begun");
            Ok(ctx.schedule_wait("cancelled").await)
        })
        .register("Due", |ctx: OrchestrationContext, ms: String| async move {
            let wait = ms.parse().map_err(|_| "milliseconds")?;
            ctx.schedule_timer(Duration::from_millis(wait)).await;
            Ok(String::new())
        })
        .register("Wait", |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("go").await) })
        .build()
}

/// Milliseconds by the machine's clock, which all processes of a test share.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

/// The child: a node until it is killed.
#[tokio::test(flavor = "multi_thread")]
async fn child_process() {
    let Ok(settings) = std::env::var(SETTINGS) else { return };
    if let Ok(filter) = std::env::var(LOG) {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let (cluster, more) = Cluster::from_words(&settings);
    let role = match more[0] {
        "orchestrator" => Role::Orchestrator,
        "worker" => Role::Worker,
        _ => Role::Both,
    };
    let _runtime = cluster.runtime(role).await;
    std::future::pending::<()>().await;
}

/// Mixed work under way, with what must come out.
pub(crate) struct Load {
    client: Client,
    expected: Vec<(String, String)>,
    prefix: String,
}

impl Load {
    pub(crate) fn new(client: Client, prefix: &str) -> Self {
        Self { client, expected: Vec::new(), prefix: prefix.to_owned() }
    }

    /// Starts some more.
    pub(crate) async fn start(&mut self, count: usize) {
        for _ in 0..count {
            let number = self.expected.len();
            let (kind, id) = (["Chain", "Timer", "Parent"][number % 3], format!("{}{number}", self.prefix));
            self.client.start_orchestration(&id, kind, id.clone()).await.unwrap();
            let output = match kind {
                "Chain" => format!("{id}......"),
                "Timer" => id.clone(),
                _ => format!("{id}0...... {id}1......"),
            };
            self.expected.push((id, output));
        }
    }

    /// Waits for the first one: then the nodes have found their servers, which the test may take away.
    pub(crate) async fn is_under_way(&self) {
        let (id, _) = self.expected.first().unwrap();
        self.client.wait_for_orchestration(id, PATIENCE).await.unwrap();
    }

    /// Waits for all, and checks every result and history.
    pub(crate) async fn finish(self) {
        for (id, expected) in &self.expected {
            let status = self.client.wait_for_orchestration(id, PATIENCE).await.unwrap();
            let OrchestrationStatus::Completed { output, .. } = status else { panic!("{id}: {status:?}") };
            assert_eq!(output, *expected, "{id}");
            let history = self.client.read_execution_history(id, 1).await.unwrap();
            for (index, event) in history.iter().enumerate() {
                assert_eq!(event.event_id, index as u64 + 1, "{id}");
                if let EventKind::TimerFired { fire_at_ms } = event.kind {
                    assert!(event.timestamp_ms >= fire_at_ms, "{id}: a timer fired early");
                }
            }
        }
    }
}
