//! A node that stops when it is told to, as a process of its own. Its activities write into a ledger when they begin and
//! when they end, so that a test sees every run, whatever history says of it.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, OrchestrationContext, OrchestrationRegistry, RuntimeOptions, TagFilter,
};

use crate::node::{Cluster, PATIENCE, wall_ms};

const SETTINGS: &str = "OUTLAST_TEST_ROLLING_NODE";
/// What running activities get when a node is told to stop; none takes so long.
const SHUTDOWN_MS: u64 = 20_000;
const READY: &str = "the node is ready";
/// The tag that some activities have.
pub(crate) const TAG: &str = "gpu";
/// Messages of one queue, and after how many the execution is followed by the next.
pub(crate) const WORDS: usize = 8;
const CONTINUED_AFTER: usize = 4;
/// Events that one instance waits for.
pub(crate) const EVENTS: usize = 4;
/// How long each step of a chain takes.
pub(crate) const STEPS_MS: [u64; 6] = [3, 200, 20, 400, 1, 60];
/// Sessions that all instances share.
pub(crate) const SESSIONS: usize = 8;

/// What the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Orchestrator,
    Worker,
    Both,
}

/// A node process, killed with its owner.
pub(crate) struct RollingNode {
    child: Child,
}

impl RollingNode {
    /// Starts it, and waits until it takes work.
    pub(crate) fn start(cluster: &Cluster, part: Part, ledger: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rolling_node::child_process", "--nocapture"])
            .env(SETTINGS, format!("{} {part:?} {}", cluster.to_words(), ledger.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains(READY)), "a node did not start");
        std::thread::spawn(move || lines.for_each(drop));
        Self { child }
    }

    pub(crate) fn tell_to_stop(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn ended(mut self) {
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "a node that was told to stop goes on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for RollingNode {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The child: a node until its input ends.
#[tokio::test(flavor = "multi_thread")]
async fn child_process() {
    let Ok(settings) = std::env::var(SETTINGS) else { return };
    let (cluster, more) = Cluster::from_words(&settings);
    let [part, ledger] = more[..] else { panic!("{settings}") };
    let options = RuntimeOptions {
        worker_concurrency: if part == "Orchestrator" { 0 } else { 16 },
        worker_tag_filter: TagFilter::DefaultAnd([TAG.to_owned()].into_iter().collect()),
        ..RuntimeOptions::default()
    };
    let orchestrations = if part == "Worker" { OrchestrationRegistry::default() } else { orchestrations() };
    let activities = activities(PathBuf::from(ledger));
    let runtime = Runtime::start_with_options(cluster.provider().await, activities, orchestrations, options).await;
    println!("{READY}");
    let told = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    told.await.unwrap().unwrap();
    runtime.shutdown(Some(SHUTDOWN_MS)).await;
    // As a program does whose main ends: what still runs does not hold it up.
    std::process::exit(0);
}

fn activities(ledger: PathBuf) -> ActivityRegistry {
    let gate = ledger.with_extension("open");
    let noted = ledger.clone();
    ActivityRegistry::builder()
        .register("Work", move |ctx: ActivityContext, input: String| {
            let ledger = noted.clone();
            async move {
                let (key, ms) = input.rsplit_once(' ').ok_or("no duration")?;
                note(&ledger, key, "begin", &ctx);
                tokio::time::sleep(Duration::from_millis(ms.parse().map_err(|_| "no milliseconds")?)).await;
                note(&ledger, key, "end", &ctx);
                Ok(key.to_owned())
            }
        })
        .register("Gate", move |ctx: ActivityContext, key: String| {
            let (ledger, gate) = (ledger.clone(), gate.clone());
            async move {
                note(&ledger, &key, "begin", &ctx);
                while !gate.exists() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                note(&ledger, &key, "end", &ctx);
                Ok(key)
            }
        })
        .build()
}

/// One line, written at once, so that lines of many processes do not mix.
fn note(ledger: &Path, key: &str, what: &str, ctx: &ActivityContext) {
    let line = format!("{key} {what} {} {}\n", ctx.worker_id(), wall_ms());
    let mut file = OpenOptions::new().append(true).create(true).open(ledger).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

async fn chain(ctx: OrchestrationContext, id: String) -> Result<String, String> {
    for (step, ms) in STEPS_MS.into_iter().enumerate() {
        let work = ctx.schedule_activity("Work", format!("{id}/{step} {ms}"));
        if step % 2 == 1 {
            work.with_tag(TAG).await?
        } else {
            work.await?
        };
    }
    Ok(id)
}

/// Takes the first messages of its queue, then goes on as the next execution with what it has.
async fn queue(ctx: OrchestrationContext, so_far: String) -> Result<String, String> {
    let mut words: Vec<String> = so_far.split_whitespace().map(str::to_owned).collect();
    while words.len() < WORDS {
        words.push(ctx.dequeue_event("words").await);
        if words.len() == CONTINUED_AFTER {
            return ctx.continue_as_new(words.join(" ")).await;
        }
    }
    let key = format!("{}/0", ctx.instance_id());
    ctx.schedule_activity("Work", format!("{key} 10")).await?;
    Ok(words.join(" "))
}

/// Says that it waits, and what came.
async fn events(ctx: OrchestrationContext, _: String) -> Result<String, String> {
    let waits = (0..EVENTS).map(|number| ctx.schedule_wait(format!("event{number}"))).collect();
    ctx.set_custom_status("waiting");
    Ok(ctx.join(waits).await.join(" "))
}

async fn on_session(ctx: OrchestrationContext, input: String) -> Result<String, String> {
    let (id, session) = input.split_once(' ').ok_or("no session")?;
    for (step, ms) in STEPS_MS.into_iter().enumerate() {
        ctx.schedule_activity_on_session("Work", format!("{id}/{step} {ms}"), session).await?;
    }
    Ok(id.to_owned())
}

/// Activities at once, and a timer between two rounds of them.
async fn fan(ctx: OrchestrationContext, id: String) -> Result<String, String> {
    for round in 0..2 {
        let work = |step| ctx.schedule_activity("Work", format!("{id}/{} 100", round * STEPS_MS.len() + step));
        let all = ctx.join((0..STEPS_MS.len()).map(work).collect()).await;
        all.into_iter().collect::<Result<Vec<_>, _>>()?;
        ctx.schedule_timer(Duration::from_millis(700)).await;
    }
    Ok(id)
}

fn orchestrations() -> OrchestrationRegistry {
    OrchestrationRegistry::builder()
        .register("Chain", chain)
        .register("Queue", queue)
        .register("Events", events)
        .register("Session", on_session)
        .register("Fan", fan)
        .register("Family", |ctx: OrchestrationContext, id: String| async move {
            let child = |n| ctx.schedule_sub_orchestration("Chain", format!("{id}.{n}"));
            let ended = ctx.join((0..2).map(child).collect()).await;
            Ok(ended.into_iter().collect::<Result<Vec<_>, _>>()?.join(" "))
        })
        .register(
            "Gate",
            |ctx: OrchestrationContext, key: String| async move { ctx.schedule_activity("Gate", key).await },
        )
        .build()
}
