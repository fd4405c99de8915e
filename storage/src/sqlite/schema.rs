//! Tables and their constraints; the guarantees that a database can hold are held here.

use rusqlite::Connection;

use super::SHARDS;
use crate::Error;
use outlast_core::Reason;

/// Schema steps in order; `user_version` counts the ones that were made. A step is never changed, only followed by others.
const MIGRATIONS: [&str; 4] = [FIRST, SECOND, THIRD, FOURTH];

const FIRST: &str = "
CREATE TABLE shards (
    id INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL DEFAULT 0 CHECK (epoch >= 0)
) STRICT;

CREATE TABLE instances (
    id TEXT PRIMARY KEY,
    shard INTEGER NOT NULL,
    orchestration TEXT NOT NULL,
    version TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('Running', 'Completed', 'Failed')),
    paused INTEGER NOT NULL DEFAULT 0,
    execution INTEGER NOT NULL CHECK (execution >= 1),
    last_event_id INTEGER NOT NULL CHECK (last_event_id >= 0),
    history_bytes INTEGER NOT NULL DEFAULT 0,
    wake_at INTEGER,
    pending INTEGER NOT NULL DEFAULT 0,
    waits TEXT NOT NULL DEFAULT '',
    stalled INTEGER NOT NULL DEFAULT 0,
    custom_status TEXT,
    custom_status_version INTEGER NOT NULL DEFAULT 0,
    output TEXT,
    parent TEXT,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    completed INTEGER,
    CHECK ((status = 'Running') = (completed IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX instances_due ON instances (wake_at) WHERE wake_at IS NOT NULL AND status = 'Running';
CREATE INDEX instances_pending ON instances (id) WHERE pending > 0;
CREATE INDEX instances_stalled ON instances (id) WHERE stalled > 0;
CREATE INDEX instances_parent ON instances (parent) WHERE parent IS NOT NULL;
CREATE INDEX instances_status ON instances (status, created);

CREATE TABLE history (
    instance TEXT NOT NULL,
    execution INTEGER NOT NULL,
    event_id INTEGER NOT NULL CHECK (event_id >= 1),
    terminal INTEGER NOT NULL DEFAULT 0,
    source_event_id INTEGER CHECK (source_event_id < event_id),
    message_id TEXT,
    epoch INTEGER NOT NULL,
    at INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (instance, execution, event_id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX history_outcome ON history (instance, execution, source_event_id) WHERE source_event_id IS NOT NULL;
CREATE UNIQUE INDEX history_message ON history (instance, message_id) WHERE message_id IS NOT NULL;
CREATE UNIQUE INDEX history_terminal ON history (instance, execution) WHERE terminal = 1;
CREATE TRIGGER history_is_append_only BEFORE UPDATE ON history
BEGIN SELECT raise(ABORT, 'history is append-only'); END;

CREATE TABLE inbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    shard INTEGER NOT NULL,
    instance TEXT NOT NULL,
    message_id TEXT NOT NULL,
    queue TEXT,
    data BLOB NOT NULL,
    UNIQUE (instance, message_id)
) STRICT;
CREATE INDEX inbox_queue ON inbox (instance, queue) WHERE queue IS NOT NULL;

CREATE TABLE kv (
    instance TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    updated INTEGER NOT NULL,
    PRIMARY KEY (instance, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE clock (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    last_write INTEGER NOT NULL
) STRICT;
INSERT INTO clock VALUES (1, 0);
";

const SECOND: &str = "
CREATE TABLE shortages (
    node TEXT NOT NULL,
    reason TEXT NOT NULL,
    instance TEXT NOT NULL,
    orchestration TEXT NOT NULL,
    waiting INTEGER NOT NULL,
    since INTEGER NOT NULL,
    PRIMARY KEY (node, reason)
) STRICT, WITHOUT ROWID;

ALTER TABLE inbox ADD COLUMN replaces INTEGER NOT NULL DEFAULT 0;

CREATE TABLE heartbeats (
    instance TEXT NOT NULL,
    activity TEXT NOT NULL,
    details TEXT NOT NULL,
    PRIMARY KEY (instance, activity)
) STRICT, WITHOUT ROWID;
";

const THIRD: &str = "
CREATE INDEX instances_paused ON instances (id) WHERE paused = 1;
";

/// Retention finds what has ended longest ago, however much has ended.
const FOURTH: &str = "
CREATE INDEX instances_ended ON instances (completed, id) WHERE completed IS NOT NULL AND parent IS NULL;
";

/// Brings a database to the current schema; a newer one is refused.
pub(super) fn migrate(db: &mut Connection) -> Result<(), Error> {
    let unusable = |error: rusqlite::Error| {
        Error::unusable(Reason::because(format!("the schema could not be brought up to date: {error}"), error))
    };
    // Two processes may open a new file at once; the second one waits here and finds everything done.
    let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(unusable)?;
    let version: usize =
        tx.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0)).map_err(unusable)? as usize;
    if version > MIGRATIONS.len() {
        return Err(Error::unusable(format!(
            "the database has schema version {version}, this program knows up to {}: upgrade the program",
            MIGRATIONS.len()
        )));
    }
    if version == 0 && has_foreign_tables(&tx).map_err(unusable)? {
        return Err(Error::unusable("the file is a database of another program: choose another path"));
    }
    for step in &MIGRATIONS[version..] {
        tx.execute_batch(step).map_err(unusable)?;
    }
    if version == 0 {
        for shard in 0..SHARDS {
            tx.execute("INSERT INTO shards (id) VALUES (?1)", [shard]).map_err(unusable)?;
        }
    }
    tx.pragma_update(None, "user_version", MIGRATIONS.len() as u32).map_err(unusable)?;
    tx.commit().map_err(unusable)
}

fn has_foreign_tables(db: &Connection) -> Result<bool, rusqlite::Error> {
    db.query_row("SELECT count(*) FROM sqlite_schema WHERE type = 'table'", [], |row| row.get::<_, u32>(0))
        .map(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::MIGRATIONS;

    /// What databases were made with must not change: add a step instead.
    #[test]
    fn steps_are_as_they_were() {
        let short =
            |text: &str| Sha256::digest(text).iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(MIGRATIONS.map(short), ["8307ef40", "c2cac069", "75a09327", "91ddea8f"]);
    }
}
