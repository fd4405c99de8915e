//! Goal: no acknowledged start is lost or doubled, whatever moment the process dies at.
//! Method: this test binary starts itself as a child on a database file; the child starts mixed work and writes down every
//! acknowledged start and message. It is killed with SIGKILL at random moments and started again, and at the end one run
//! is left alone to finish; then every acknowledged instance must have its one right result.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use outlast::providers::sqlite::SqliteProvider;
use outlast::{
    Client, EventKind, OrchestrationContext, OrchestrationRegistry, OrchestrationRegistryBuilder, OrchestrationStatus,
};

use crate::world::{World, activities, options};

/// Names the directory of the database; set only in the child.
const DIRECTORY: &str = "OUTLAST_CRASH_DIRECTORY";
/// Kills over the run.
const KILLS: usize = 200;
/// Queue messages that each instance of that kind waits for.
const WORDS: u32 = 5;

fn registry() -> OrchestrationRegistryBuilder {
    OrchestrationRegistry::builder()
        .register("Chain", |ctx: OrchestrationContext, input: String| async move {
            let mut value = input;
            for _ in 0..5 {
                value = ctx.schedule_activity("Echo", format!("{value}.")).await?;
            }
            Ok(value)
        })
        .register("Timer", |ctx: OrchestrationContext, input: String| async move {
            ctx.schedule_timer(Duration::from_millis(40)).await;
            Ok(input)
        })
        .register("Parent", |ctx: OrchestrationContext, input: String| async move {
            let children = (0..3).map(|n| ctx.schedule_sub_orchestration("Chain", format!("{input}{n}"))).collect();
            Ok(ctx.join(children).await.into_iter().collect::<Result<Vec<_>, _>>()?.join(" "))
        })
        .register("Words", |ctx: OrchestrationContext, so_far: String| async move {
            let word = ctx.dequeue_event("words").await;
            let so_far = format!("{so_far}{word}");
            if word == WORDS.to_string() { Ok(so_far) } else { ctx.continue_as_new(so_far).await }
        })
        .register("Endless", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_activity("Echo", "").await?;
            Ok(ctx.schedule_wait("never").await)
        })
}

fn expected(kind: &str, id: &str) -> Result<String, String> {
    match kind {
        "Chain" => Ok(format!("{id}.....")),
        "Timer" => Ok(id.to_owned()),
        "Parent" => Ok((0..3).map(|n| format!("{id}{n}.....")).collect::<Vec<_>>().join(" ")),
        "Words" => Ok((1..=WORDS).map(|n| n.to_string()).collect()),
        _ => Err("canceled: enough".to_owned()),
    }
}

/// The child: goes on with what is there and starts more, until it is killed.
#[tokio::test(flavor = "multi_thread")]
async fn child_process() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let directory = Path::new(&directory);
    let url = format!("sqlite:{}", directory.join("db").display());
    let provider = Arc::new(SqliteProvider::new(&url, None).await.unwrap());
    let world = World::on(provider, activities(), registry(), options()).await;
    let mut log = std::fs::File::options().append(true).create(true).open(directory.join("acknowledged")).unwrap();
    let begun = std::process::id();
    for n in 0.. {
        let kind = ["Chain", "Timer", "Parent", "Words", "Endless"][n % 5];
        let id = format!("{kind}-{begun}-{n}");
        let input = if kind == "Words" { "" } else { id.as_str() };
        world.client.start_orchestration(&id, kind, input).await.unwrap();
        note(&mut log, &format!("{kind} {id}\n"));
        match kind {
            "Words" => {
                for word in 1..=WORDS {
                    world.client.enqueue_event(&id, "words", word.to_string()).await.unwrap();
                    note(&mut log, &format!("word {id}\n"));
                }
            }
            "Endless" => {
                world.client.cancel_instance(&id, "enough").await.unwrap();
                note(&mut log, &format!("cancelled {id}\n"));
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// One write, so that a kill leaves the whole line or nothing.
fn note(log: &mut std::fs::File, line: &str) {
    log.write_all(line.as_bytes()).unwrap();
}

fn spawn(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child_process", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Instances whose start was acknowledged.
fn acknowledged_in(directory: &Path) -> usize {
    let text = std::fs::read_to_string(directory.join("acknowledged")).unwrap_or_default();
    let starts = text.lines().filter_map(|line| line.split_once(' '));
    starts.filter(|(kind, _)| !["word", "cancelled"].contains(kind)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_survives_two_hundred_kills() {
    let directory = tempfile::tempdir().unwrap();
    let (mut pause, mut kills) = (17_u64, 0);
    // On a slow machine some more, later ones: until enough was acknowledged to say something.
    while kills < KILLS || acknowledged_in(directory.path()) <= KILLS {
        let mut child = spawn(directory.path());
        pause = (pause * 31 + 7) % 181;
        let more = if kills < KILLS { 0 } else { 500 };
        tokio::time::sleep(Duration::from_millis(40 + pause + more)).await;
        kills += 1;
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let url = format!("sqlite:{}", directory.path().join("db").display());
    let provider = Arc::new(SqliteProvider::new(&url, None).await.unwrap());
    let world = World::on(provider, activities(), registry(), options()).await;
    let text = std::fs::read_to_string(directory.path().join("acknowledged")).unwrap();
    let acknowledged: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let mut words: BTreeMap<&str, u32> = BTreeMap::new();
    for (_, id) in acknowledged.iter().filter(|(kind, _)| *kind == "word") {
        *words.entry(id).or_default() += 1;
    }
    finish_what_the_kill_cut_off(&world.client, &acknowledged, &words).await;
    let mut checked = 0_usize;
    for (kind, id) in acknowledged.iter().filter(|(kind, _)| !["word", "cancelled"].contains(kind)) {
        let outcome = world.outcome(id).await.map_err(|details| details.display_message());
        assert_eq!(outcome, expected(kind, id), "{id}");
        check_history(&world.client, id).await;
        checked += 1;
    }
    assert_eq!(checked, acknowledged_in(directory.path()));
    world.runtime.shutdown(None).await;
}

/// The last messages of a killed child may be missing; they were never acknowledged. An unacknowledged one may still have
/// arrived, so the queue is filled from what the instance's rows show.
async fn finish_what_the_kill_cut_off(client: &Client, acknowledged: &[(&str, &str)], words: &BTreeMap<&str, u32>) {
    for (kind, id) in acknowledged {
        match *kind {
            "Endless" => client.cancel_instance(*id, "enough").await.unwrap(),
            "Words" if words.get(id).copied().unwrap_or(0) < WORDS => {
                let known = words.get(id).copied().unwrap_or(0);
                let arrived = arrived_words(client, id, known).await;
                for word in arrived + 1..=WORDS {
                    client.enqueue_event(*id, "words", word.to_string()).await.unwrap();
                }
            }
            _ => {}
        }
    }
}

/// How many words an instance has taken, once it has taken all that are there.
async fn arrived_words(client: &Client, id: &str, at_least: u32) -> u32 {
    loop {
        if let OrchestrationStatus::Completed { output, .. } = client.get_orchestration_status(id).await.unwrap() {
            return output.len() as u32;
        }
        let waiting = client.get_orchestration_stats(id).await.unwrap().unwrap().queue_pending_count;
        let taken = client.list_executions(id).await.unwrap().len().saturating_sub(1) as u32;
        if waiting == 0 && taken >= at_least {
            return taken;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Event ids without gap, no early timer.
async fn check_history(client: &Client, id: &str) {
    let history = client.read_execution_history(id, 1).await.unwrap();
    for (index, event) in history.iter().enumerate() {
        assert_eq!(event.event_id, index as u64 + 1, "{id}");
        if let EventKind::TimerFired { fire_at_ms } = event.kind {
            assert!(event.timestamp_ms >= fire_at_ms, "{id}: a timer fired early");
        }
    }
}
