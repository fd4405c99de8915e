//! What only the embedded store does: it follows the clock of a machine, gives space back, and loads while others look around.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use outlast_storage::sqlite::{MachineClock, SqliteStore};
use outlast_storage::{CallStore, DeleteOptions, InspectStore, TurnStore};

use crate::clocks::Log;
use crate::fixture::{commit_one, completed, id, is_committed, sqlite, start, status_updated};

const HOUR: Duration = Duration::from_secs(3_600);

/// A machine whose wall clock differs from this one's by what the test says.
struct Machine {
    ahead_ms: AtomicU64,
    since: Instant,
}

impl Machine {
    /// Two days ahead, so that it can go back.
    fn new() -> Arc<Self> {
        let ahead_ms = AtomicU64::new(48 * 3_600_000);
        Arc::new(Self { ahead_ms, since: Instant::now() })
    }

    fn move_on(&self, by: Duration) {
        self.ahead_ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }

    fn move_back(&self, by: Duration) {
        self.ahead_ms.fetch_sub(by.as_millis() as u64, Ordering::Relaxed);
    }
}

impl MachineClock for Machine {
    fn wall(&self) -> Duration {
        let real = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        real + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.since.elapsed()
    }
}

#[tokio::test]
async fn time_follows_a_machine_that_slept_and_never_goes_back() {
    let (machine, log) = (Machine::new(), Log::default());
    let _logging = tracing::subscriber::set_default(log.clone());
    let store = SqliteStore::open_on("sqlite::memory:", machine.clone()).unwrap();
    let before = store.now();
    assert_eq!(log.text(), "");
    machine.move_on(2 * HOUR);
    let after = store.now();
    assert!(after >= before.plus(2 * HOUR) && after <= before.plus(3 * HOUR), "{before:?} {after:?}");
    assert!(log.text().contains("has moved on by itself"), "{}", log.text());
    machine.move_back(24 * HOUR);
    let back = store.now();
    assert!(back >= after && back <= after.plus(HOUR), "{after:?} {back:?}");
    assert!(log.text().contains("was set back"), "{}", log.text());
    // From where it is it goes on, and is caught up with.
    machine.move_on(25 * HOUR);
    assert!(store.now() >= after.plus(HOUR - Duration::from_secs(60)));
}

#[tokio::test]
async fn a_sleeper_is_woken_by_a_machine_that_slept_and_not_early() {
    let machine = Machine::new();
    let store = SqliteStore::open_on("sqlite::memory:", machine.clone()).unwrap();
    let (due, soon) = (store.now().plus(HOUR), store.now().plus(Duration::from_millis(300)));
    let begun = Instant::now();
    machine.move_back(2 * HOUR);
    store.sleep_until(soon).await;
    assert!(begun.elapsed() >= Duration::from_millis(299), "{:?}", begun.elapsed());
    machine.move_on(4 * HOUR);
    tokio::time::timeout(Duration::from_secs(20), store.sleep_until(due)).await.unwrap();
}

#[tokio::test]
async fn a_last_write_ten_years_ahead_is_said_at_opening() {
    let directory = tempfile::tempdir().unwrap();
    let ahead = {
        let store = sqlite(&directory);
        store.now().plus(24 * 3_650 * HOUR)
    };
    let db = rusqlite::Connection::open(directory.path().join("db")).unwrap();
    db.execute("UPDATE clock SET last_write = ?1", [ahead.0.cast_signed()]).unwrap();
    let log = Log::default();
    let _logging = tracing::subscriber::set_default(log.clone());
    let store = sqlite(&directory);
    assert!(store.now() >= ahead, "time went back");
    assert!(
        log.text().contains("was last written at a time that this machine's clock has not reached"),
        "{}",
        log.text()
    );
}

fn size(directory: &Path) -> u64 {
    std::fs::metadata(directory.join("db")).unwrap().len()
}

fn path(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("db")
}

/// Ended instances with 24 MiB of events, some of them still in the log; what becomes of the file when they are deleted.
async fn fill_and_delete(store: &SqliteStore, directory: &Path) {
    let owner = crate::fixture::Owner::of_all(store).await;
    for n in 0..24 {
        let name = format!("i{n}");
        start(store, &name).await;
        let events = vec![status_updated(&"x".repeat(1 << 20)), completed()];
        assert!(is_committed(&commit_one(store, owner.turn(store, &name, events).await).await));
    }
    let full = size(directory);
    assert!(full > 12 << 20, "{full}");
    for n in 0..24 {
        store.delete(&id(&format!("i{n}")), DeleteOptions::first_try(true)).await.unwrap();
    }
    let begun = Instant::now();
    while size(directory) > 6 << 20 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{} bytes of {full} are left", size(directory));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_gives_back_what_deletions_have_freed() {
    let directory = tempfile::tempdir().unwrap();
    fill_and_delete(&sqlite(&directory), directory.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_an_older_version_gives_space_back_too() {
    let directory = tempfile::tempdir().unwrap();
    start(&sqlite(&directory), "old").await;
    let made_anew = || {
        let db = rusqlite::Connection::open(path(&directory)).unwrap();
        db.execute_batch("PRAGMA auto_vacuum = NONE; VACUUM").unwrap();
        db.query_row("PRAGMA auto_vacuum", [], |row| row.get::<_, u32>(0)).unwrap()
    };
    assert_eq!(made_anew(), 0);
    let store = sqlite(&directory);
    assert!(store.state(&id("old")).await.unwrap().is_some());
    fill_and_delete(&store, directory.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_inspection_does_not_hold_up_the_loading_of_instances() {
    const LOOKS: usize = 300;
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(sqlite(&directory));
    start(store.as_ref(), "i").await;
    let rows = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 200000) \
                INSERT INTO history (instance, execution, event_id, epoch, at, data) SELECT 'other', 1, n, 0, 0, zeroblob(40) FROM n";
    rusqlite::Connection::open(path(&directory)).unwrap().execute(rows, []).unwrap();
    let done = Arc::new(AtomicU64::new(0));
    for _ in 0..LOOKS {
        let (store, done) = (Arc::clone(&store), Arc::clone(&done));
        tokio::spawn(async move {
            store.metrics().await.unwrap();
            done.fetch_add(1, Ordering::Relaxed);
        });
    }
    while done.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(store.load(&id("i")).await.unwrap().is_some());
    let done = done.load(Ordering::Relaxed);
    assert!(done < LOOKS as u64, "an instance was loaded after all {done} looks");
}
