//! Goal: other processes on the same file, a locked database and a full disk cost time and nothing else.
//! Method: this test binary starts itself as a second process, as a client, as a rival runtime, or as a runtime whose files
//! may not grow.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{Client, OrchestrationContext, OrchestrationRegistry, OrchestrationRegistryBuilder, OrchestrationStatus};

use crate::world::{SOON, World, activities, options};

/// What the second process is, and where the database lies; set only there.
const ROLE: &str = "OUTLAST_OUTAGE_ROLE";
const DIRECTORY: &str = "OUTLAST_OUTAGE_DIRECTORY";

fn registry() -> OrchestrationRegistryBuilder {
    OrchestrationRegistry::builder().register("Chain", |ctx: OrchestrationContext, input: String| async move {
        let mut value = input;
        for _ in 0..3 {
            value = ctx.schedule_activity("Echo", format!("{value}.")).await?;
            ctx.schedule_timer(Duration::from_millis(10)).await;
        }
        Ok(value)
    })
}

async fn provider(directory: &Path) -> Arc<SqliteProvider> {
    let url = format!("sqlite:{}", directory.join("db").display());
    Arc::new(SqliteProvider::new(&url, None).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn second_process() {
    let (Ok(role), Some(directory)) = (std::env::var(ROLE), std::env::var_os(DIRECTORY)) else { return };
    let provider = provider(Path::new(&directory)).await;
    match role.as_str() {
        "client" => {
            let client = Client::new(provider);
            client.start_orchestration("from-elsewhere", "Chain", "x").await.unwrap();
            println!("{:?}", client.wait_for_orchestration("from-elsewhere", SOON).await.unwrap());
        }
        "rival" => {
            let (activities, orchestrations) = (activities().build(), registry().build());
            match Runtime::try_start(provider, activities, orchestrations, options()).await {
                Ok(_) => println!("started"),
                Err(error) => println!("refused: {error}"),
            }
        }
        _ => {
            let world = World::on(provider, activities(), registry(), options()).await;
            println!("ready");
            for n in 0..400 {
                let id = format!("i{n}");
                world.client.start_orchestration(&id, "Chain", "y".repeat(2_000)).await.unwrap();
            }
            for n in 0..400 {
                assert_eq!(world.outcome(&format!("i{n}")).await.unwrap().len(), 2_003);
            }
            println!("all completed");
        }
    }
}

fn spawn(role: &str, directory: &Path) -> Child {
    // A write beyond the limit must come back as an error instead of the signal that ends the process.
    let script = "trap '' XFSZ; exec \"$0\" --exact outages::second_process --nocapture";
    Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .env(ROLE, role)
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn said(role: &str, directory: &Path) -> String {
    let output = spawn(role, directory).wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_may_be_a_client_and_not_a_runtime() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::on(provider(directory.path()).await, activities(), registry(), options()).await;
    let path = directory.path().to_owned();
    let text = tokio::task::spawn_blocking(move || said("client", &path)).await.unwrap();
    assert!(text.contains("Completed") && text.contains("x..."), "{text}");
    let path = directory.path().to_owned();
    let text = tokio::task::spawn_blocking(move || said("rival", &path)).await.unwrap();
    assert!(text.contains("refused: ") && text.contains("another process"), "{text}");
    // The refused one has disturbed nothing.
    assert_eq!(world.run("Chain", "z").await.unwrap(), "z...");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_database_makes_everybody_wait() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::on(provider(directory.path()).await, activities(), registry(), options()).await;
    world.client.start_orchestration("before", "Chain", "a").await.unwrap();
    let lock = rusqlite::Connection::open(directory.path().join("db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let client = world.client.clone();
    let during = tokio::spawn(async move { client.start_orchestration("during", "Chain", "b").await });
    // Longer than a statement waits for a lock, so that commits really fail.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(!during.is_finished(), "a start was acknowledged though nothing could be written");
    lock.execute_batch("ROLLBACK").unwrap();
    during.await.unwrap().unwrap();
    assert_eq!(world.outcome("before").await.unwrap(), "a...");
    assert_eq!(world.outcome("during").await.unwrap(), "b...");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_makes_instances_wait_and_fails_none() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = spawn("worker", directory.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("ready")));
    let limit = |bytes: &str| {
        let pid = child.id().to_string();
        let done = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}:unlimited")]).status();
        assert!(done.unwrap().success());
    };
    // The write-ahead log reaches this within the first instances.
    limit("400000");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let reader = Client::new(provider(directory.path()).await);
    let full = reader.list_all_instances().await.unwrap().len();
    assert!(full < 400, "the limit has stopped nothing");
    limit("unlimited");
    assert!(lines.any(|line| line.contains("all completed")), "the process has given up");
    assert!(child.wait().unwrap().success());
    for id in reader.list_all_instances().await.unwrap() {
        let status = reader.get_orchestration_status(&id).await.unwrap();
        assert!(matches!(status, OrchestrationStatus::Completed { .. }), "{id}: {status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_instance_harms_no_neighbour() {
    let directory = tempfile::tempdir().unwrap();
    let provider = provider(directory.path()).await;
    let client = Client::new(provider.clone());
    for n in 0..40 {
        client.start_orchestration(format!("i{n}"), "Chain", "a").await.unwrap();
    }
    let db = rusqlite::Connection::open(directory.path().join("db")).unwrap();
    // One cannot be read; the first event of the other breaks a constraint when it is written.
    db.execute("UPDATE inbox SET data = x'00' WHERE instance = 'i7'", []).unwrap();
    db.execute(
        "INSERT INTO history (instance, execution, event_id, epoch, at, data) VALUES ('i9', 1, 2, 0, 0, x'00')",
        [],
    )
    .unwrap();
    let world = World::on(provider, activities(), registry(), options()).await;
    for n in (0..40).filter(|n| ![7, 9].contains(n)) {
        assert_eq!(world.outcome(&format!("i{n}")).await.unwrap(), "a...");
    }
    let listed = async {
        loop {
            let problems = client.list_problems().await.unwrap();
            if ["i7", "i9"].iter().all(|id| problems.iter().any(|problem| problem.instance_id == *id)) {
                return problems;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let problems = tokio::time::timeout(SOON, listed).await.unwrap();
    assert!(problems.iter().all(|problem| problem.reason.contains("damaged")), "{problems:?}");
    for damaged in ["i7", "i9"] {
        let status = client.get_orchestration_status(damaged).await.unwrap();
        assert!(matches!(status, OrchestrationStatus::Running { .. }), "{damaged}: {status:?}");
    }
    assert_eq!(world.run("Chain", "b").await.unwrap(), "b...");
}
