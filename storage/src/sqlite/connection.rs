//! One writing thread that groups its jobs, and reading threads beside it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use outlast_core::{Millis, Reason};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{oneshot, watch};

use super::TARGET;
use super::file::DatabaseFile;
use super::vacuum::Vacuum;
use super::write_job::{Job, Undo, WriteJob, caught, closed, take_group};
use crate::Error;
use crate::error::panicked;

/// How often the writing thread looks for commits of other processes, while a runtime is joined: a client in another process
/// waits no longer for its start, and a look reads one number.
const ELSEWHERE_INTERVAL: Duration = Duration::from_millis(200);
/// How long a statement waits for another process's write: far longer than any commit takes, so that only a stuck process shows.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause of the writing thread after a panic beside its jobs, so that one that repeats does not fill the log.
const AFTER_PANIC: Duration = Duration::from_millis(50);
/// Threads that read what instances need in order to go on. Two, so that a long history holds up no other.
const READERS: usize = 2;
/// Threads that read for people and dashboards, which may take as long as the tables are. Two, so that a count of all rows
/// holds up no other page.
const INSPECTORS: usize = 2;
/// What stays of the log after a large transaction: a little more than the size at which it is moved into the file.
const LOG_BYTES_KEPT: i64 = 20 << 20;
/// Prepared statements that a connection keeps: more than there are texts of statements, so none is prepared twice.
const STATEMENTS: usize = 128;
/// How often an outage is reported as an error: often enough to be found at the end of a log, and not its only content.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

type ReadJob = Box<dyn FnOnce(&Connection) + Send>;

/// The way to the threads that hold the connections. They end when this is dropped.
pub(super) struct Connections {
    writer: mpsc::Sender<Box<dyn WriteJob>>,
    /// A database in memory has only one connection, which then reads too.
    readers: Option<Readers>,
    pub(super) queries: Arc<AtomicU64>,
    pub(super) elsewhere: Arc<Elsewhere>,
    file: Option<Arc<DatabaseFile>>,
}

/// The ways to the threads that read.
struct Readers {
    loading: mpsc::Sender<ReadJob>,
    inspection: mpsc::Sender<ReadJob>,
}

/// What the writing thread finds out about other processes and people.
#[derive(Default)]
pub(super) struct Elsewhere {
    pub(super) watched: AtomicBool,
    /// The file does not lie where it was opened any more.
    pub(super) misplaced: AtomicBool,
    /// Rises with every look that found something.
    pub(super) written: watch::Sender<u64>,
}

/// A database that is ready.
pub(super) struct Opened {
    pub(super) connections: Connections,
    pub(super) shards: u16,
    pub(super) last_write: Millis,
}

pub(super) fn open(file: Option<&Arc<DatabaseFile>>, queries: Arc<AtomicU64>) -> Result<Opened, Error> {
    let mut db = connect(file)?;
    super::schema::migrate(&mut db)?;
    let unusable = |error: rusqlite::Error| Error::unusable(Reason::of(error));
    let shards = db.query_row("SELECT count(*) FROM shards", [], |row| row.get(0)).map_err(unusable)?;
    let last_write: i64 = db.query_row("SELECT last_write FROM clock", [], |row| row.get(0)).map_err(unusable)?;
    let vacuum = file.map(|_| Vacuum::begin(&db)).transpose().map_err(unusable)?;
    let start = |file: &Arc<DatabaseFile>| {
        let loading = spawn_readers(file, READERS, &queries)?;
        Ok::<_, Error>(Readers { loading, inspection: spawn_readers(file, INSPECTORS, &queries)? })
    };
    let readers = file.map(start).transpose()?;
    let elsewhere = Arc::new(Elsewhere::default());
    let file = file.cloned();
    let writer = spawn_writer(Writer {
        db,
        file: file.clone(),
        elsewhere: Arc::clone(&elsewhere),
        queries: Arc::clone(&queries),
        vacuum,
        complained: None,
    })?;
    let connections = Connections { writer, readers, queries, elsewhere, file };
    Ok(Opened { connections, shards, last_write: Millis(last_write.max(0).cast_unsigned()) })
}

fn connect(file: Option<&Arc<DatabaseFile>>) -> Result<Connection, Error> {
    let open = || {
        // It was made before, and its path is no address: no flag that would read it as one, or make another file.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = match file {
            Some(file) => Connection::open_with_flags(&file.path, flags)?,
            None => Connection::open_in_memory()?,
        };
        db.busy_timeout(BUSY_TIMEOUT)?;
        if file.is_some() {
            Vacuum::choose(&db)?;
        }
        db.pragma_update(None, "journal_mode", "WAL")?;
        // Every commit reaches the disk before it is acknowledged, also through power loss.
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "wal_autocheckpoint", 4_000)?;
        db.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
        db.pragma_update(None, "cache_size", -16_384)?;
        db.pragma_update(None, "temp_store", "MEMORY")?;
        // Otherwise a statement that partial indexes might serve is planned anew for every value that is bound to it.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        db.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(db)
    };
    open().map_err(|error: rusqlite::Error| {
        let name = file.map_or("in memory".into(), |file| file.path.display().to_string());
        Error::unusable(Reason::because(format!("database {name} cannot be opened: {error}"), error))
    })
}

/// Threads that share a queue: who is free takes the next job, so that none waits behind a long one while another thread idles.
fn spawn_readers(
    file: &Arc<DatabaseFile>,
    count: usize,
    queries: &Arc<AtomicU64>,
) -> Result<mpsc::Sender<ReadJob>, Error> {
    let (sender, jobs) = mpsc::channel::<ReadJob>();
    let jobs = Arc::new(Mutex::new(jobs));
    for _ in 0..count {
        let (file, db) = (Arc::clone(file), connect(Some(file))?);
        let (jobs, queries) = (Arc::clone(&jobs), Arc::clone(queries));
        let run = move || {
            // Dropped after the connection.
            let (_file, db) = (file, db);
            loop {
                let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(job) = job else { return };
                queries.fetch_add(1, Ordering::Relaxed);
                job(&db);
            }
        };
        spawn("outlast-read", run)?;
    }
    Ok(sender)
}

/// The writing thread. Fields are dropped in order: the connection before the file.
struct Writer {
    db: Connection,
    file: Option<Arc<DatabaseFile>>,
    elsewhere: Arc<Elsewhere>,
    queries: Arc<AtomicU64>,
    vacuum: Option<Vacuum>,
    /// When an outage was last reported as an error.
    complained: Option<Instant>,
}

fn spawn_writer(mut writer: Writer) -> Result<mpsc::Sender<Box<dyn WriteJob>>, Error> {
    let (sender, jobs) = mpsc::channel::<Box<dyn WriteJob>>();
    let run = move || {
        let mut seen = data_version(&writer.db);
        // Jobs are caught one by one. Beside them, a panic costs the group that it meets, whose callers try again.
        while catch_unwind(AssertUnwindSafe(|| writer.serve(&jobs, &mut seen))).map_err(panicked).is_err() {
            writer.roll_back();
            std::thread::sleep(AFTER_PANIC);
        }
    };
    spawn("outlast-write", run)?;
    Ok(sender)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    let failed = |error| Error::unusable(Reason::because(format!("no thread for the database: {error}"), error));
    spawned.map(drop).map_err(failed)
}

/// The counter that rises when another connection has written.
fn data_version(db: &Connection) -> i64 {
    db.prepare_cached("PRAGMA data_version").and_then(|mut query| query.query_row([], |row| row.get(0))).unwrap_or(0)
}

fn notice(db: &Connection, seen: i64, elsewhere: &Elsewhere) -> i64 {
    let now = data_version(db);
    if now != seen {
        elsewhere.written.send_modify(|written| *written += 1);
    }
    now
}

impl Writer {
    /// Runs jobs until nobody can bring any more.
    fn serve(&mut self, jobs: &mpsc::Receiver<Box<dyn WriteJob>>, seen: &mut i64) {
        loop {
            let first = match jobs.recv_timeout(self.patience()) {
                Ok(job) => job,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let misplaced = self.look_for_file().is_some();
                    if let Some(vacuum) = self.vacuum.as_mut().filter(|_| !misplaced) {
                        vacuum.step(&self.db, true);
                    }
                    if self.elsewhere.watched.load(Ordering::Relaxed) {
                        self.queries.fetch_add(1, Ordering::Relaxed);
                        *seen = notice(&self.db, *seen, &self.elsewhere);
                    }
                    continue;
                }
            };
            let group = take_group(first, jobs);
            self.queries.fetch_add(group.len() as u64, Ordering::Relaxed);
            self.write_group(group);
            if let Some(vacuum) = &mut self.vacuum {
                vacuum.written();
                vacuum.step(&self.db, false);
            }
            *seen = notice(&self.db, *seen, &self.elsewhere);
        }
    }

    /// Ends a transaction that a panic has left open.
    fn roll_back(&self) {
        if !self.db.is_autocommit()
            && let Err(error) = execute(&self.db, "ROLLBACK")
        {
            tracing::warn!(target: TARGET, %error, "rollback failed");
        }
    }

    /// How long it waits for work before it looks for something else to do.
    fn patience(&self) -> Duration {
        self.vacuum.as_ref().and_then(Vacuum::pause).unwrap_or(ELSEWHERE_INTERVAL)
    }

    /// Runs all jobs in one transaction and tells each what became of it.
    fn write_group(&mut self, mut group: Vec<Box<dyn WriteJob>>) {
        // What is written to a file that lies elsewhere by now is in a log that nobody finds there.
        let outcome = self.look_for_file().map_or_else(|| self.try_group(&mut group), Err);
        // First all that follows, then all answers. Each may wake a thread; by turns, they would wake two all the time.
        if outcome.is_ok() {
            group.iter_mut().for_each(|job| job.follow());
        }
        for job in group {
            job.answer(outcome.clone());
        }
    }

    fn try_group(&mut self, group: &mut [Box<dyn WriteJob>]) -> Result<(), Error> {
        let outcome = match transact(&self.db, group, Undo::Together) {
            Err(Failure::MustUndo) => transact(&self.db, group, Undo::Alone),
            outcome => outcome,
        };
        outcome.map_err(|failure| {
            let text = failure.to_string();
            // Everything waits until this is mended, so it is said where it is seen, but not at every try.
            if self.may_complain() {
                tracing::error!(target: TARGET, error = %text, "the database cannot be written, everything waits for it");
            } else {
                tracing::warn!(target: TARGET, error = %text, jobs = group.len(), "nothing was committed, callers try again");
            }
            Error::unavailable(Reason::because(text, failure))
        })
    }

    /// What is wrong with the place of the file.
    fn look_for_file(&mut self) -> Option<Error> {
        let file = self.file.clone()?;
        let misplaced = !file.is_in_place();
        let was_misplaced = self.elsewhere.misplaced.swap(misplaced, Ordering::Relaxed);
        if misplaced && (self.may_complain() || !was_misplaced) {
            tracing::error!(target: TARGET, error = %file.lost(), "nothing is written any more");
        } else if was_misplaced && !misplaced {
            tracing::warn!(target: TARGET, path = %file.path.display(), "the database lies where it was opened again");
        }
        misplaced.then(|| file.lost())
    }

    fn may_complain(&mut self) -> bool {
        let may = self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY);
        if may {
            self.complained = Some(Instant::now());
        }
        may
    }
}

/// Why a transaction came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("one of the jobs must be undone")]
    MustUndo,
    #[error("the database has ended the transaction")]
    Ended,
    #[error("the database cannot be written: {0}")]
    Sql(#[from] rusqlite::Error),
}

fn transact(db: &Connection, group: &mut [Box<dyn WriteJob>], undo: Undo) -> Result<(), Failure> {
    execute(db, "BEGIN IMMEDIATE")?;
    let ran = group.iter_mut().try_for_each(|job| {
        let clean = job.run(db, undo);
        // A full disk or a read error ends the whole transaction under our feet.
        if db.is_autocommit() {
            return Err(Failure::Ended);
        }
        if clean { Ok(()) } else { Err(Failure::MustUndo) }
    });
    let ended = ran.and_then(|()| execute(db, "COMMIT"));
    if ended.is_err()
        && !db.is_autocommit()
        && let Err(error) = execute(db, "ROLLBACK")
    {
        tracing::warn!(target: TARGET, %error, "rollback failed");
    }
    ended
}

fn execute(db: &Connection, sql: &str) -> Result<(), Failure> {
    Ok(db.prepare_cached(sql)?.execute([]).map(drop)?)
}

impl Connections {
    /// Runs a job in the next transaction; returns when it is durable. An `Err` of the job undoes the job alone, so the
    /// job may run twice.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection, Undo) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.hand_in(0, work, None::<fn(&T)>).await
    }

    /// [`Connections::write`] of so many bytes, and what follows from it. `after` is called by the writing thread once the result
    /// is durable, whether or not the caller still waits for it.
    pub(super) async fn write_then<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnMut(&Connection, Undo) -> Result<T, Error> + Send + 'static,
        after: impl FnOnce(&T) + Send + 'static,
    ) -> Result<T, Error> {
        self.hand_in(bytes, work, Some(after)).await
    }

    async fn hand_in<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnMut(&Connection, Undo) -> Result<T, Error> + Send + 'static,
        after: Option<impl FnOnce(&T) + Send + 'static>,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        self.writer.send(Box::new(Job::new(bytes, work, after, answer))).map_err(|_| closed())?;
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Reads what instances need in order to go on, or what is read by key in no time.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        job: impl FnMut(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.read_by(|readers| &readers.loading, job).await
    }

    /// Reads for people and dashboards, which may take long.
    pub(super) async fn inspect<T: Send + 'static>(
        &self,
        job: impl FnMut(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.read_by(|readers| &readers.inspection, job).await
    }

    async fn read_by<T: Send + 'static>(
        &self,
        way: impl FnOnce(&Readers) -> &mpsc::Sender<ReadJob>,
        mut job: impl FnMut(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let Some(readers) = &self.readers else { return self.write(move |db, _| job(db)).await };
        if let Some(file) = &self.file
            && self.elsewhere.misplaced.load(Ordering::Relaxed)
        {
            return Err(file.lost());
        }
        let (answer, answered) = oneshot::channel();
        let run: ReadJob = Box::new(move |db| {
            let _gone = answer.send(caught(|| job(db)));
        });
        way(readers).send(run).map_err(|_| closed())?;
        answered.await.unwrap_or_else(|_| Err(closed()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rusqlite::Connection;

    use super::{Connections, open};
    use crate::Error;
    use crate::sqlite::failure::sql_error;
    use crate::sqlite::write_job::Undo;

    async fn insert(db: &Connections, number: i64) -> Result<(), Error> {
        db.write(move |db: &Connection, _: Undo| {
            db.execute("INSERT INTO numbers VALUES (?)", [number]).map_err(sql_error)?;
            assert!(number != 13, "unlucky");
            Ok(())
        })
        .await
    }

    async fn numbers(db: &Connections) -> Result<Vec<i64>, Error> {
        let read = |db: &Connection| {
            let mut query = db.prepare_cached("SELECT number FROM numbers ORDER BY number")?;
            query.query_map([], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()
        };
        db.read(move |db| read(db).map_err(sql_error)).await
    }

    fn is_told(result: &Result<(), Error>) -> bool {
        matches!(result, Err(Error::Unavailable(text)) if text.contains("panicked") && text.contains("unlucky"))
    }

    #[tokio::test]
    async fn a_write_that_panics_is_undone_alone_and_told_to_its_caller() {
        let db = open(None, Arc::default()).expect("a store in memory opens").connections;
        let table =
            |db: &Connection, _: Undo| db.execute_batch("CREATE TABLE numbers (number INTEGER)").map_err(sql_error);
        db.write(table).await.expect("a table is made");
        for _ in 0..3 {
            // Together they make up one or more groups.
            let (first, unlucky, last) = futures::join!(insert(&db, 1), insert(&db, 13), insert(&db, 2));
            assert!(first.is_ok() && is_told(&unlucky) && last.is_ok(), "{first:?} {unlucky:?} {last:?}");
        }
        assert_eq!(numbers(&db).await.expect("it is read"), [1, 1, 1, 2, 2, 2]);
        // So is what follows a write, which stays.
        let after = db.write_then(0, |_, _| Ok(()), |()| panic!("unlucky")).await;
        assert!(after.is_ok() && insert(&db, 3).await.is_ok(), "{after:?}");
    }

    #[tokio::test]
    async fn reads_that_panic_end_no_thread() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("db").display().to_string();
        let store = crate::sqlite::SqliteStore::open(&path).expect("a store opens");
        let db = &store.connections;
        // More of them than there are threads.
        for _ in 0..10 {
            assert!(is_told(&db.read::<()>(|_| panic!("unlucky")).await));
            assert!(is_told(&db.inspect::<()>(|_| panic!("unlucky")).await));
        }
        assert_eq!((db.read(|_| Ok(1)).await.ok(), db.inspect(|_| Ok(2)).await.ok()), (Some(1), Some(2)));
    }
}
