//! Goal: a database is one file, however it is named: one process runs it, providers of one process share it, and whoever loses it
//! says so.
//! Method: names of all kinds, within this process and from a second one, which is this test binary again; files that are moved.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outlast::providers::StoreError;
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus};

use crate::world::{SOON, World, activities, options};

/// Where the second process finds the database; set only there.
const RIVAL: &str = "OUTLAST_FILES_RIVAL";

fn registry() -> outlast::OrchestrationRegistryBuilder {
    OrchestrationRegistry::builder().register("Echo", |ctx: OrchestrationContext, input: String| async move {
        ctx.schedule_activity("Echo", input).await
    })
}

async fn provider(name: &str) -> Arc<SqliteProvider> {
    Arc::new(SqliteProvider::new(name, None).await.unwrap())
}

async fn run(client: &Client, id: &str) {
    client.start_orchestration(id, "Echo", id).await.unwrap();
    completes(client, id).await;
}

async fn completes(client: &Client, id: &str) {
    match client.wait_for_orchestration(id, SOON).await.unwrap() {
        OrchestrationStatus::Completed { output, .. } => assert_eq!(output, id),
        other => panic!("{id}: {other:?}"),
    }
}

/// Every name of `db` in the directory that another program may come by.
fn names(directory: &Path) -> Vec<String> {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    std::fs::create_dir_all(path("sub")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(path("db"), path("link")).unwrap();
    std::fs::hard_link(path("db"), path("sub/hard")).unwrap();
    vec![path("db"), path("link"), path("sub/hard"), path("sub/../db"), format!("sqlite:{}", path("sub/../link"))]
}

#[tokio::test]
async fn a_second_process_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let url = format!("sqlite:{}", path.display());
    let provider = Arc::new(SqliteProvider::new(&url, None).await.unwrap());
    // What another process would hold.
    let lock = std::fs::File::create(dir.path().join("db.runtime-lock")).unwrap();
    lock.lock().unwrap();
    let (a, o) = (activities().build(), OrchestrationRegistry::builder().build());
    let Err(refused) = Runtime::try_start(provider, a, o, options()).await else { panic!("two runtimes on one file") };
    assert!(refused.to_string().contains("another process"), "{refused}");
}

#[tokio::test]
async fn second_process() {
    let Ok(name) = std::env::var(RIVAL) else { return };
    let opened = SqliteProvider::new(&name, None).await;
    let started = match opened {
        Ok(provider) => {
            let (a, o) = (activities().build(), registry().build());
            Runtime::try_start(Arc::new(provider), a, o, options()).await.map(drop).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    match started {
        Ok(()) => println!("started"),
        Err(error) => println!("refused: {error}"),
    }
}

fn rival(name: &str, directory: &Path) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["files::second_process", "--exact", "--nocapture"]).env(RIVAL, name).current_dir(directory);
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_refused_by_whichever_name_it_comes() {
    let directory = tempfile::tempdir().unwrap();
    // A relative name, and another working directory by the time that the runtime starts.
    std::env::set_current_dir(directory.path()).unwrap();
    let first = provider("db").await;
    std::env::set_current_dir("/").unwrap();
    let world = World::on(first, activities(), registry(), options()).await;
    for name in names(directory.path()).into_iter().chain(["db".to_owned(), "./sub/../db".to_owned()]) {
        let said = rival(&name, directory.path());
        assert!(said.contains("refused: ") && !said.contains("started"), "{name}: {said}");
        let expected = if name.contains("hard") { "another name" } else { "another process" };
        assert!(said.contains(expected), "{name}: {said}");
    }
    run(&world.client, "still").await;
    world.runtime.shutdown(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_of_one_process_share_a_file_under_all_its_names() {
    let directory = tempfile::tempdir().unwrap();
    let first = provider(directory.path().join("db").to_str().unwrap()).await;
    let world = World::on(first, activities(), registry(), options()).await;
    for (n, name) in names(directory.path()).into_iter().enumerate() {
        let second = provider(&name).await;
        let client = Client::new(second.clone());
        let begun = Instant::now();
        for round in 0..20 {
            run(&client, &format!("i{n}.{round}")).await;
        }
        // By a look alone, each would take a second.
        assert!(begun.elapsed() < Duration::from_secs(15), "{name}: {:?}", begun.elapsed());
        // A second runtime takes its share of the work.
        let (a, o) = (activities().build(), registry().build());
        let runtime = Runtime::try_start(second, a, o, options()).await.unwrap();
        run(&client, &format!("both {n}")).await;
        runtime.shutdown(None).await;
    }
    run(&world.client, "last").await;
    world.runtime.shutdown(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_moved_or_replaced_while_it_is_open_is_said_and_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let (path, away) = (directory.path().join("db"), directory.path().join("away"));
    let world = World::on(provider(path.to_str().unwrap()).await, activities(), registry(), options()).await;
    run(&world.client, "before").await;
    std::fs::rename(&path, &away).unwrap();
    for replaced in [false, true] {
        if replaced {
            std::fs::write(&path, "something else").unwrap();
        }
        let refused = world.client.start_orchestration("lost", "Echo", "").await.unwrap_err();
        assert!(refused.to_string().contains("was moved, removed or replaced") && !refused.is_retryable(), "{refused}");
        let refused = world.client.get_orchestration_status("before").await.unwrap_err();
        assert!(refused.to_string().contains("was moved, removed or replaced"), "{refused}");
        let said = rival(away.to_str().unwrap(), directory.path());
        assert!(said.contains("another name"), "{said}");
    }
    std::fs::rename(&away, &path).unwrap();
    run(&world.client, "after").await;
    completes(&world.client, "before").await;
    world.runtime.shutdown(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_was_lost_is_said_and_taken_back_when_it_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let world = World::on(provider(path.to_str().unwrap()).await, activities(), registry(), options()).await;
    run(&world.client, "before").await;
    // Somebody removes the lock file, and another process takes a new one and all shards.
    std::fs::remove_file(directory.path().join("db.runtime-lock")).unwrap();
    let lock = std::fs::File::create(directory.path().join("db.runtime-lock")).unwrap();
    let taken = lock.try_lock().is_ok();
    rusqlite::Connection::open(&path).unwrap().execute("UPDATE shards SET epoch = epoch + 1", []).unwrap();
    world.client.start_orchestration("meanwhile", "Echo", "meanwhile").await.unwrap();
    if taken {
        let begun = Instant::now();
        while world.runtime.readiness().is_ok() {
            assert!(begun.elapsed() < SOON, "a node without its lock takes itself for ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    drop(lock);
    completes(&world.client, "meanwhile").await;
    run(&world.client, "after").await;
    world.runtime.readiness().unwrap();
    world.runtime.shutdown(None).await;
}

#[tokio::test]
async fn a_path_is_taken_as_it_is_and_a_url_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("what? #1.db");
    SqliteProvider::new(path.to_str().unwrap(), None).await.unwrap();
    assert!(path.exists());
    for url in ["", "sqlite:", "postgres://localhost/x", "sqlite:db?cache=shared"] {
        let refused = SqliteProvider::new(url, None).await.map(|_| ());
        assert!(refused.unwrap_err().to_string().contains("use sqlite:PATH"), "{url}");
    }
}

#[tokio::test]
async fn no_path_is_read_as_an_address_of_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    std::env::set_current_dir(directory.path()).unwrap();
    for address in [
        "file:m?mode=memory",
        "file::memory:?cache=shared",
        "File:m",
        "sqlite:file:m?mode=memory",
        "sqlite://file:m",
        "sqlite::memory:?cache=shared",
        "nul\0inside",
    ] {
        let refused = SqliteProvider::new(address, None).await.map(|_| ()).unwrap_err();
        assert!(
            matches!(&refused, StoreError::Unusable(why) if why.contains("use sqlite:PATH")),
            "{address}: {refused}"
        );
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    for (name, file) in
        [("./file:m?mode=memory", "file:m?mode=memory"), (":memory:x", ":memory:x"), ("a%20b?x", "a%20b?x")]
    {
        let provider = provider(name).await;
        Client::new(provider).start_orchestration("i", "Echo", "").await.unwrap();
        let header = std::fs::read(directory.path().join(file)).unwrap();
        assert!(header.starts_with(b"SQLite format 3"), "{name}");
    }
}

#[test]
fn a_provider_outlives_the_executor_that_it_was_opened_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let executor = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first = executor();
    let provider = first.block_on(provider(path.to_str().unwrap()));
    drop(first);
    executor().block_on(async {
        let world = World::on(provider, activities(), registry(), options()).await;
        run(&world.client, "i").await;
        world.runtime.shutdown(None).await;
    });
}
