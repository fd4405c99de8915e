//! Giving space back: the pages that deletions have freed leave the file in small steps, between the commits of others.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::TARGET;

/// Free pages that stay in the file for what is written next, four megabytes: a file that breathes is not cut and grown again.
const KEPT_PAGES: u64 = 1_024;
/// Pages that one step gives back; a step is a transaction of its own. A megabyte takes a few milliseconds, and commits wait so long.
const STEP_PAGES: u64 = 256;
/// Time between two steps while others write: a tenth of the writing thread at most.
const STEP_EVERY: Duration = Duration::from_millis(50);
/// Pause between two steps while nobody does.
const STEP_PAUSE: Duration = Duration::from_millis(2);
/// Bytes in use up to which a file that cannot give space back is rewritten at opening, which takes a second or less.
const REWRITE_BYTES_MAX: u64 = 64 << 20;
/// What a file says that gives space back in steps.
const INCREMENTAL: u64 = 2;

/// What the writing thread does beside its commits.
pub(super) struct Vacuum {
    able: bool,
    /// Something was written since it was last looked.
    written: bool,
    /// A step has not given back all.
    more: bool,
    last: Instant,
}

impl Vacuum {
    /// Before anything else is done with a connection: a new file is made so that it can give space back.
    pub(super) fn choose(db: &Connection) -> rusqlite::Result<()> {
        db.pragma_update(None, "auto_vacuum", INCREMENTAL.cast_signed())
    }

    /// Rewrites a file that was made otherwise, if that is quick.
    pub(super) fn begin(db: &Connection) -> rusqlite::Result<Self> {
        let mut able = number(db, "auto_vacuum")? == INCREMENTAL;
        if !able {
            let used = number(db, "page_count")?.saturating_sub(number(db, "freelist_count")?);
            if used * number(db, "page_size")? > REWRITE_BYTES_MAX {
                tracing::info!(
                    target: TARGET,
                    "the database file was made by an older version and gives no space back: to change that, run PRAGMA auto_vacuum = \
                     INCREMENTAL; VACUUM; on it once, while no process has it open"
                );
            } else if let Err(error) = db.execute_batch("VACUUM") {
                tracing::info!(target: TARGET, %error, "the database file cannot be rewritten now, it gives no space back until it can");
            } else {
                able = number(db, "auto_vacuum")? == INCREMENTAL;
            }
        }
        Ok(Self { able, written: true, more: false, last: Instant::now() })
    }

    /// A group was written.
    pub(super) fn written(&mut self) {
        self.written = true;
    }

    /// How long to wait for work before the next step.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.more.then_some(STEP_PAUSE)
    }

    /// Gives back a little, if there is something and it is time; `idle` when nobody waits for the thread.
    pub(super) fn step(&mut self, db: &Connection, idle: bool) {
        let due = self.able && (self.more || self.written) && (idle || self.last.elapsed() >= STEP_EVERY);
        if !due {
            return;
        }
        self.last = Instant::now();
        self.written = false;
        match give_back(db) {
            Ok(more) if self.more && !more => {
                self.more = false;
                // The file shrinks when the log is brought into it.
                if let Err(error) = run(db, "PRAGMA wal_checkpoint(PASSIVE)") {
                    tracing::debug!(target: TARGET, %error, "the file shrinks at the next checkpoint");
                }
            }
            Ok(more) => self.more = more,
            Err(error) => {
                // Another process writes: there is no hurry.
                (self.more, self.written) = (false, true);
                tracing::debug!(target: TARGET, %error, "no space was given back, trying again");
            }
        }
    }
}

/// One step; whether there is more.
fn give_back(db: &Connection) -> rusqlite::Result<bool> {
    let spare = number(db, "freelist_count")?.saturating_sub(KEPT_PAGES);
    // A few pages more or less come and go with every commit.
    if spare < STEP_PAGES {
        return Ok(false);
    }
    run(db, &format!("PRAGMA incremental_vacuum({STEP_PAGES})"))?;
    Ok(true)
}

fn number(db: &Connection, pragma: &str) -> rusqlite::Result<u64> {
    db.prepare_cached(&format!("PRAGMA {pragma}"))?.query_row([], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
}

/// To its end: such a statement works while its rows are read.
fn run(db: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}
