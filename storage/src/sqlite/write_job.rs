//! Work of the writing thread, and how much of it shares one commit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::failure::sql_error;
use crate::Error;
use crate::error::panicked;

/// Jobs that share one durable commit, and what they carry: what is beyond that waits for the next one, and the log stays small.
const JOBS_PER_COMMIT_MAX: usize = 1_024;
const BYTES_PER_COMMIT_MAX: usize = 16 << 20;

/// Whether what one job writes can be undone without undoing its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undo {
    /// No: savepoints are not free, and most groups need none. What must be undone ends this try of the whole group.
    Together,
    /// Yes: the group is tried again with a savepoint around each piece.
    Alone,
}

/// Work of the writing thread. It runs once, or again when its group is tried again.
pub(super) trait WriteJob: Send {
    /// How much it carries.
    fn bytes(&self) -> usize;

    /// Runs inside the transaction; `false` when what it wrote must be undone.
    fn run(&mut self, db: &Connection, undo: Undo) -> bool;

    /// Does what follows from a result that is durable.
    fn follow(&mut self);

    /// Tells the caller, when the commit's outcome is known.
    fn answer(self: Box<Self>, committed: Result<(), Error>);
}

/// A closure, what follows once its result is durable, and where the result goes.
pub(super) struct Job<T, F, A> {
    bytes: usize,
    work: Option<F>,
    after: Option<A>,
    result: Option<Result<T, Error>>,
    answer: oneshot::Sender<Result<T, Error>>,
}

impl<T, F, A> Job<T, F, A> {
    pub(super) fn new(bytes: usize, work: F, after: Option<A>, answer: oneshot::Sender<Result<T, Error>>) -> Self {
        Self { bytes, work: Some(work), after, result: None, answer }
    }
}

impl<T, F, A> WriteJob for Job<T, F, A>
where
    T: Send,
    F: FnMut(&Connection, Undo) -> Result<T, Error> + Send,
    A: FnOnce(&T) + Send,
{
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn run(&mut self, db: &Connection, undo: Undo) -> bool {
        let before = db.total_changes();
        let Some(work) = &mut self.work else { return true };
        let result = match undo {
            Undo::Together => caught(|| work(db, undo)),
            Undo::Alone => in_savepoint(db, |db| caught(|| work(db, undo))),
        };
        // A refusal that came before anything was written leaves nothing to undo.
        let clean = result.is_ok() || undo == Undo::Alone || db.total_changes() == before;
        self.result = Some(result);
        clean
    }

    fn follow(&mut self) {
        if let (Some(Ok(value)), Some(after)) = (&self.result, self.after.take()) {
            // What `after` shares with it is now its alone.
            self.work = None;
            // It is written all the same: whoever is not told of it looks into the store.
            let _said = caught(|| {
                after(value);
                Ok(())
            });
        }
    }

    fn answer(self: Box<Self>, committed: Result<(), Error>) {
        let Self { work, result, answer, .. } = *self;
        // A caller that has gone away does not need its answer.
        let _gone = answer.send(committed.and(result.unwrap_or_else(|| Err(closed()))));
        // Later, as nobody waits for it.
        drop(work);
    }
}

/// What is written together: what waits already, up to the bounds.
pub(super) fn take_group(first: Box<dyn WriteJob>, jobs: &mpsc::Receiver<Box<dyn WriteJob>>) -> Vec<Box<dyn WriteJob>> {
    let mut bytes = first.bytes();
    let mut group = vec![first];
    while group.len() < JOBS_PER_COMMIT_MAX
        && bytes < BYTES_PER_COMMIT_MAX
        && let Ok(job) = jobs.try_recv()
    {
        bytes = bytes.saturating_add(job.bytes());
        group.push(job);
    }
    group
}

/// Undoes `job` alone when it fails.
pub(super) fn in_savepoint<T>(db: &Connection, job: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
    let run = |sql| db.prepare_cached(sql).and_then(|mut statement| statement.execute([])).map_err(sql_error);
    run("SAVEPOINT one")?;
    match job(db) {
        Ok(value) => run("RELEASE one").map(|_| value),
        Err(error) => {
            if !db.is_autocommit() {
                run("ROLLBACK TO one")?;
                run("RELEASE one")?;
            }
            Err(error)
        }
    }
}

/// A panic of one job is an error of its caller, and the thread goes on: every other job waits for it.
pub(super) fn caught<T>(job: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|panic| Err(panicked(panic)))
}

pub(super) fn closed() -> Error {
    Error::unavailable("the database is closed")
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::{BYTES_PER_COMMIT_MAX, JOBS_PER_COMMIT_MAX, Undo, WriteJob, take_group};
    use crate::Error;

    struct Carries(usize);

    impl WriteJob for Carries {
        fn bytes(&self) -> usize {
            self.0
        }

        fn run(&mut self, _: &Connection, _: Undo) -> bool {
            true
        }

        fn follow(&mut self) {}

        fn answer(self: Box<Self>, _: Result<(), Error>) {}
    }

    #[test]
    fn what_is_written_together_is_bounded_by_number_and_by_bytes() {
        for (bytes, jobs, expected) in [
            (0, JOBS_PER_COMMIT_MAX + 1, JOBS_PER_COMMIT_MAX),
            (BYTES_PER_COMMIT_MAX / 4, 9, 4),
            (BYTES_PER_COMMIT_MAX - 1, 9, 2),
            (usize::MAX, 9, 1),
        ] {
            let (sender, waiting) = std::sync::mpsc::channel();
            for _ in 1..jobs {
                sender.send(Box::new(Carries(bytes)) as Box<dyn WriteJob>).expect("it is received below");
            }
            assert_eq!(take_group(Box::new(Carries(bytes)), &waiting).len(), expected, "{bytes}");
        }
    }
}
