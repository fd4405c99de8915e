//! Committing turns and reading what actors are hydrated from.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use outlast_core::{
    Epoch, EventId, ExecutionId, HistoryEvent, InboxSeq, Incoming, InstanceId, InstanceStatus, KvChange, Message,
    MessageKind, Millis, OutboundMessage, ShardId, StartMessage, encode,
};
use rusqlite::{Connection, OptionalExtension, params};

use super::SqliteStore;
use super::failure::{is_constraint, sql_error};
use super::rows::{STATE, optional_millis, read_history, read_inbox, state_of};
use super::write_job::{Undo, in_savepoint};
use crate::{Arrivals, CommitReply, Due, Error, FencedTurn, InboxCursor, Loaded, TurnOutcome, TurnStore, Wake};

/// Why one turn of a group was not written.
enum Refusal {
    Conflict,
    Refused(String),
    Broken(Error),
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        if is_constraint(&error) { Self::Refused(error.to_string()) } else { Self::Broken(sql_error(error)) }
    }
}

#[async_trait]
impl TurnStore for SqliteStore {
    async fn commit(&self, group: Vec<FencedTurn>) -> Result<CommitReply, Error> {
        let now = self.clock.now();
        let shards = self.shards;
        let commit = move |db: &Connection, undo| {
            let outcomes = commit_group(db, &group, WriteAt { now, shards }, undo)?;
            let fenced = group.iter().zip(&outcomes).filter(|(_, outcome)| matches!(outcome, TurnOutcome::Fenced));
            let fenced: Vec<_> = fenced.map(|(turn, _)| (turn.shard, turn.epoch)).collect();
            Ok((outcomes, fenced))
        };
        let (outcomes, fenced) = self.connections.write(commit).await?;
        for (shard, epoch) in fenced {
            self.leases.fenced(shard, epoch);
        }
        Ok(CommitReply { now: self.clock.now(), outcomes })
    }

    async fn load(&self, instance: &InstanceId) -> Result<Option<Loaded>, Error> {
        let instance = instance.clone();
        self.connections.read(move |db| load(db, &instance)).await
    }

    async fn inbox(&self, instance: &InstanceId, after: InboxCursor) -> Result<(Vec<Incoming>, InboxCursor), Error> {
        let instance = instance.clone();
        self.connections.read(move |db| read_inbox(db, &instance, after)).await
    }

    async fn due(&self, shards: &[ShardId], until: Millis, limit: usize) -> Result<Vec<Due>, Error> {
        let wanted: BTreeSet<ShardId> = shards.iter().copied().collect();
        self.connections
            .read(move |db| {
                let sql = "SELECT wake_at, shard, id FROM instances \
                           WHERE wake_at IS NOT NULL AND status = 'Running' AND wake_at <= ?1 ORDER BY wake_at";
                let mut query = db.prepare_cached(sql).map_err(sql_error)?;
                let mut rows = query.query([until.0.cast_signed()]).map_err(sql_error)?;
                let mut due = Vec::new();
                while let Some(row) = rows.next().map_err(sql_error)? {
                    let shard = ShardId(row.get(1).map_err(sql_error)?);
                    if wanted.contains(&shard) {
                        let at = optional_millis(row, 0).map_err(sql_error)?.unwrap_or_default();
                        due.push(Due {
                            at,
                            shard,
                            instance: InstanceId::from(row.get::<_, String>(2).map_err(sql_error)?),
                        });
                    }
                    if due.len() >= limit {
                        break;
                    }
                }
                Ok(due)
            })
            .await
    }

    async fn next_due(&self, shards: &[ShardId], after: Millis) -> Result<Option<Millis>, Error> {
        let wanted: BTreeSet<ShardId> = shards.iter().copied().collect();
        self.connections
            .read(move |db| {
                let sql = "SELECT wake_at, shard FROM instances \
                           WHERE wake_at IS NOT NULL AND status = 'Running' AND wake_at > ?1 ORDER BY wake_at";
                let mut query = db.prepare_cached(sql).map_err(sql_error)?;
                let mut rows = query.query([after.0.cast_signed()]).map_err(sql_error)?;
                while let Some(row) = rows.next().map_err(sql_error)? {
                    if wanted.contains(&ShardId(row.get(1).map_err(sql_error)?)) {
                        return optional_millis(row, 0).map_err(sql_error);
                    }
                }
                Ok(None)
            })
            .await
    }

    async fn arrivals(&self, shards: &[ShardId], after: InboxCursor, limit: usize) -> Result<Arrivals, Error> {
        let wanted: BTreeSet<ShardId> = shards.iter().copied().collect();
        self.connections
            .read(move |db| {
                // There is one writer at a time, so rows become visible in the order of their numbers. No grouping: it would read
                // all that waits for every page.
                let sql = "SELECT seq, shard, instance FROM inbox WHERE seq > ?1 ORDER BY seq";
                let mut query = db.prepare_cached(sql).map_err(sql_error)?;
                let mut rows = query.query([after.seq.0]).map_err(sql_error)?;
                let mut arrivals = Arrivals { next: after, ..Arrivals::default() };
                let mut named = HashSet::new();
                while let Some(row) = rows.next().map_err(sql_error)? {
                    if arrivals.receivers.len() >= limit {
                        arrivals.more = true;
                        break;
                    }
                    arrivals.next.seq = InboxSeq(row.get(0).map_err(sql_error)?);
                    let shard = ShardId(row.get(1).map_err(sql_error)?);
                    if wanted.contains(&shard) {
                        let instance = InstanceId::from(row.get::<_, String>(2).map_err(sql_error)?);
                        if named.insert(instance.clone()) {
                            arrivals.receivers.push(Wake { shard, instance });
                        }
                    }
                }
                Ok(arrivals)
            })
            .await
    }

    async fn pending(&self, shards: &[ShardId], after: Option<&InstanceId>, limit: usize) -> Result<Vec<Wake>, Error> {
        let wanted: BTreeSet<ShardId> = shards.iter().copied().collect();
        let after = after.map_or(String::new(), |id| id.as_str().to_owned());
        self.connections
            .read(move |db| {
                let sql =
                    "SELECT shard, id FROM instances WHERE pending > 0 AND status = 'Running' AND id > ?1 ORDER BY id";
                let mut query = db.prepare_cached(sql).map_err(sql_error)?;
                let rows = query
                    .query_map([&after], |row| {
                        Ok(Wake { shard: ShardId(row.get(0)?), instance: InstanceId::from(row.get::<_, String>(1)?) })
                    })
                    .map_err(sql_error)?;
                let mine = rows.filter(|row| row.as_ref().map_or(true, |wake| wanted.contains(&wake.shard)));
                mine.take(limit).collect::<Result<_, _>>().map_err(sql_error)
            })
            .await
    }

    async fn written_elsewhere(&self, seen: u64, timeout: Duration) -> u64 {
        let elsewhere = &self.connections.elsewhere;
        elsewhere.watched.store(true, Ordering::Relaxed);
        let mut written = elsewhere.written.subscribe();
        match tokio::time::timeout(timeout, written.wait_for(|written| *written != seen)).await {
            Ok(Ok(written)) => *written,
            // The writing thread is gone, or nothing was written.
            Ok(Err(_)) | Err(_) => seen,
        }
    }

    fn now(&self) -> Millis {
        self.clock.now()
    }

    async fn sleep_until(&self, at: Millis) {
        self.clock.sleep_until(at).await;
    }
}

fn load(db: &Connection, instance: &InstanceId) -> Result<Option<Loaded>, Error> {
    // No transaction around the three: if another owner commits in between, the commit that builds on this read conflicts.
    let sql = format!("SELECT {STATE}, shard FROM instances WHERE id = ?1");
    let row = db
        .prepare_cached(&sql)
        .and_then(|mut query| {
            query.query_row([instance.as_str()], |row| Ok((state_of(row)?, ShardId(row.get(15)?)))).optional()
        })
        .map_err(sql_error)?;
    let Some((state, shard)) = row else { return Ok(None) };
    let begun = state.last_event_id > EventId(0);
    let history = if begun { read_history(db, instance, state.execution)? } else { Vec::new() };
    let (inbox, cursor) = read_inbox(db, instance, InboxCursor::default())?;
    Ok(Some(Loaded { shard, state, history, inbox, cursor, mailed: None }))
}

/// When a group is written, and among how many shards.
#[derive(Clone, Copy)]
struct WriteAt {
    now: Millis,
    shards: u16,
}

fn commit_group(db: &Connection, group: &[FencedTurn], at: WriteAt, undo: Undo) -> Result<Vec<TurnOutcome>, Error> {
    let mut epochs = HashMap::new();
    let mut outcomes = Vec::with_capacity(group.len());
    for turn in group {
        let epoch = match epochs.get(&turn.shard) {
            Some(epoch) => *epoch,
            None => *epochs.entry(turn.shard).or_insert(epoch_of(db, turn.shard)?),
        };
        if epoch != turn.epoch {
            outcomes.push(TurnOutcome::Fenced);
            continue;
        }
        outcomes.push(match undo {
            Undo::Together => write_unguarded(db, turn, at)?,
            Undo::Alone => write_guarded(db, turn, at)?,
        });
    }
    let touch = "UPDATE clock SET last_write = max(last_write, ?1)";
    db.prepare_cached(touch).and_then(|mut s| s.execute([at.now.0.cast_signed()])).map_err(sql_error)?;
    Ok(outcomes)
}

/// A failure that has already written something fails the whole attempt; the next attempt is guarded.
fn write_unguarded(db: &Connection, turn: &FencedTurn, at: WriteAt) -> Result<TurnOutcome, Error> {
    let before = db.total_changes();
    match write_turn(db, turn, at.now, at.shards) {
        Ok(wakes) => Ok(TurnOutcome::Committed { wakes }),
        Err(Refusal::Conflict) if db.total_changes() == before => Ok(TurnOutcome::Conflict),
        Err(Refusal::Conflict) => Err(Error::unavailable("a conflict must be undone")),
        Err(Refusal::Refused(reason)) => Err(Error::unavailable(reason)),
        Err(Refusal::Broken(error)) => Err(error),
    }
}

fn write_guarded(db: &Connection, turn: &FencedTurn, at: WriteAt) -> Result<TurnOutcome, Error> {
    let mut refusal = None;
    let written = in_savepoint(db, |db| {
        write_turn(db, turn, at.now, at.shards).map_err(|why| {
            refusal = Some(why);
            Error::unavailable("")
        })
    });
    match (written, refusal) {
        (Ok(wakes), _) => Ok(TurnOutcome::Committed { wakes }),
        (Err(_), Some(Refusal::Conflict)) => Ok(TurnOutcome::Conflict),
        (Err(_), Some(Refusal::Refused(reason))) => Ok(TurnOutcome::Refused(reason)),
        (Err(_), Some(Refusal::Broken(error))) | (Err(error), None) => Err(error),
    }
}

fn epoch_of(db: &Connection, shard: ShardId) -> Result<Epoch, Error> {
    db.prepare_cached("SELECT epoch FROM shards WHERE id = ?1")
        .and_then(|mut query| query.query_row([shard.0], |row| row.get::<_, i64>(0)))
        .map(|epoch| Epoch(epoch.cast_unsigned()))
        .map_err(sql_error)
}

fn write_turn(db: &Connection, fenced: &FencedTurn, now: Millis, shards: u16) -> Result<Vec<Wake>, Refusal> {
    let (id, shard) = (fenced.instance.as_str(), fenced.move_to.unwrap_or(fenced.shard));
    write_state(db, fenced, shard, now)?;
    for (execution, event) in &fenced.turn.events {
        write_event(db, id, *execution, event, fenced.epoch)?;
    }
    if let Some(mailed) = fenced.mailed.filter(|mailed| fenced.turn.consumed.contains(&mailed.seq)) {
        let sql = "SELECT data FROM inbox WHERE seq = ?1 AND instance = ?2";
        let row: Option<Vec<u8>> =
            db.prepare_cached(sql)?.query_row(params![mailed.seq.0, id], |row| row.get(0)).optional()?;
        if row.is_none_or(|data| !mailed.is(&data)) {
            return Err(Refusal::Conflict);
        }
    }
    let mut consume = db.prepare_cached("DELETE FROM inbox WHERE seq = ?1 AND instance = ?2")?;
    for seq in &fenced.turn.consumed {
        if consume.execute(params![seq.0, id])? != 1 {
            return Err(Refusal::Conflict);
        }
    }
    drop(consume);
    write_kv(db, id, &fenced.turn.kv)?;
    for activity in &fenced.turn.heartbeats {
        let sql = "DELETE FROM heartbeats WHERE instance = ?1 AND activity = ?2";
        db.prepare_cached(sql)?.execute(params![id, activity])?;
    }
    for message in &fenced.turn.held {
        insert_message(db, &fenced.instance, shard, message)?;
    }
    if fenced.move_to.is_some() {
        db.prepare_cached("UPDATE inbox SET shard = ?1 WHERE instance = ?2")?.execute(params![shard.0, id])?;
    }
    // A later turn takes out what it has read and no more.
    let ends = fenced.before.status == InstanceStatus::Running && fenced.turn.state.completed_at.is_some();
    if ends {
        // A new start that this turn has not seen must not go with the rest.
        if db.prepare_cached("SELECT 1 FROM inbox WHERE instance = ?1 AND replaces = 1")?.exists([id])? {
            return Err(Refusal::Conflict);
        }
        db.prepare_cached("DELETE FROM inbox WHERE instance = ?1")?.execute([id])?;
        db.prepare_cached("DELETE FROM heartbeats WHERE instance = ?1")?.execute([id])?;
    }
    let mut wakes = Vec::new();
    for outbound in &fenced.turn.outbound {
        wakes.extend(send(db, fenced, outbound, now, shards)?);
    }
    Ok(wakes)
}

fn write_state(db: &Connection, fenced: &FencedTurn, shard: ShardId, now: Millis) -> Result<(), Refusal> {
    let (state, before, expected) = (&fenced.turn.state, &fenced.before, fenced.turn.expected);
    // A column that is named here costs its indexes a rewrite even when its value stays.
    let mut sql = String::with_capacity(512);
    sql.push_str(
        "UPDATE instances SET orchestration = ?1, version = ?2, paused = ?3, execution = ?4, last_event_id = ?5, \
         history_bytes = ?6, waits = ?7, custom_status = ?8, custom_status_version = ?9, output = ?10, shard = ?11, \
         updated = ?12",
    );
    for (set, changed) in [
        (", status = ?13, completed = ?14", state.status != before.status),
        (", wake_at = ?15", state.wake_at != before.wake_at),
        (", pending = ?16", state.pending != before.pending),
        (", stalled = ?17", state.stalled != before.stalled),
    ] {
        if changed {
            sql.push_str(set);
        }
    }
    sql.push_str(" WHERE id = ?18 AND execution = ?19 AND last_event_id = ?20 AND status = 'Running'");
    let changed = db.prepare_cached(&sql)?.execute(params![
        state.orchestration,
        state.version,
        state.paused,
        state.execution.0.cast_signed(),
        state.last_event_id.0.cast_signed(),
        state.history_bytes.cast_signed(),
        state.waits,
        state.custom_status,
        state.custom_status_version.cast_signed(),
        state.output,
        shard.0,
        now.0.cast_signed(),
        state.status.as_str(),
        state.completed_at.map(|at| at.0.cast_signed()),
        state.wake_at.map(|at| at.0.cast_signed()),
        state.pending,
        state.stalled,
        fenced.instance.as_str(),
        expected.execution.0.cast_signed(),
        expected.last_event_id.0.cast_signed(),
    ])?;
    if changed == 1 { Ok(()) } else { left_over(db, fenced) }
}

/// An ended instance has one more kind of turn: clearing what still comes in.
fn left_over(db: &Connection, fenced: &FencedTurn) -> Result<(), Refusal> {
    let only_consumes = fenced.turn.events.is_empty() && fenced.turn.outbound.is_empty() && fenced.turn.held.is_empty();
    let sql = "SELECT 1 FROM instances WHERE id = ?1 AND execution = ?2 AND last_event_id = ?3 AND status <> 'Running'";
    let expected = fenced.turn.expected;
    let numbers = (expected.execution.0.cast_signed(), expected.last_event_id.0.cast_signed());
    let ended = db.prepare_cached(sql)?.exists(params![fenced.instance.as_str(), numbers.0, numbers.1])?;
    if ended && only_consumes { Ok(()) } else { Err(Refusal::Conflict) }
}

fn write_event(
    db: &Connection,
    id: &str,
    execution: ExecutionId,
    event: &HistoryEvent,
    epoch: Epoch,
) -> Result<(), Refusal> {
    let sql = "INSERT INTO history (instance, execution, event_id, terminal, source_event_id, message_id, epoch, at, data) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    db.prepare_cached(sql)?.execute(params![
        id,
        execution.0.cast_signed(),
        event.event_id.0.cast_signed(),
        event.kind.is_terminal(),
        event.source_event_id.map(|id| id.0.cast_signed()),
        event.message_id.as_ref().map(|id| id.as_str()),
        epoch.0.cast_signed(),
        event.at.0.cast_signed(),
        encode(&event.kind),
    ])?;
    Ok(())
}

fn write_kv(db: &Connection, id: &str, changes: &[KvChange]) -> Result<(), Refusal> {
    for change in changes {
        match change {
            KvChange::Set(entry) => db
                .prepare_cached("INSERT OR REPLACE INTO kv (instance, key, value, updated) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![id, entry.key, entry.value, entry.last_updated_at_ms.cast_signed()])?,
            KvChange::Clear(key) => {
                db.prepare_cached("DELETE FROM kv WHERE instance = ?1 AND key = ?2")?.execute(params![id, key])?
            }
            KvChange::ClearAll => db.prepare_cached("DELETE FROM kv WHERE instance = ?1")?.execute([id])?,
        };
    }
    Ok(())
}

/// Puts a message into another instance's inbox; a start makes the instance.
fn send(
    db: &Connection,
    fenced: &FencedTurn,
    outbound: &OutboundMessage,
    now: Millis,
    shards: u16,
) -> Result<Option<Wake>, Refusal> {
    let (sender, sender_shard) = (&fenced.instance, fenced.move_to.unwrap_or(fenced.shard));
    if let MessageKind::Start(start) = &outbound.message.kind {
        let shard = ShardId::of(&outbound.to, shards);
        if insert_instance(db, &outbound.to, shard, start, now)? {
            insert_message(db, &outbound.to, shard, &outbound.message)?;
            return Ok(Some(Wake { shard, instance: outbound.to.clone() }));
        }
        let Some(taken) = &outbound.when_taken else { return Ok(None) };
        insert_message(db, sender, sender_shard, taken)?;
        return Ok(Some(Wake { shard: sender_shard, instance: sender.clone() }));
    }
    let sql = "SELECT shard FROM instances WHERE id = ?1 AND status = 'Running'";
    let receiver = db.prepare_cached(sql)?.query_row([outbound.to.as_str()], |row| row.get(0)).optional()?;
    let Some(shard) = receiver.map(ShardId) else { return Ok(None) };
    insert_message(db, &outbound.to, shard, &outbound.message)?;
    Ok(Some(Wake { shard, instance: outbound.to.clone() }))
}

/// Makes the row of an instance; `false` when the id is taken.
pub(super) fn insert_instance(
    db: &Connection,
    id: &InstanceId,
    shard: ShardId,
    start: &StartMessage,
    now: Millis,
) -> Result<bool, rusqlite::Error> {
    let sql = "INSERT OR IGNORE INTO instances (id, shard, orchestration, version, status, execution, last_event_id, parent, \
               created, updated) VALUES (?1, ?2, ?3, '', 'Running', 1, 0, ?4, ?5, ?5)";
    let parent = start.parent.as_ref().map(|parent| parent.instance.as_str());
    let now = now.0.cast_signed();
    Ok(db.prepare_cached(sql)?.execute(params![id.as_str(), shard.0, start.name, parent, now])? == 1)
}

/// Adds an inbox row; `false` when a message with this id waits already.
pub(super) fn insert_message(
    db: &Connection,
    to: &InstanceId,
    shard: ShardId,
    message: &Message,
) -> Result<bool, rusqlite::Error> {
    let queue = match &message.kind {
        MessageKind::Enqueue { queue, .. } => Some(queue.as_str()),
        _ => None,
    };
    let replaces = matches!(message.kind, MessageKind::Replace(_));
    let sql = "INSERT OR IGNORE INTO inbox (shard, instance, message_id, queue, replaces, data) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let row = params![shard.0, to.as_str(), message.id.as_str(), queue, replaces, encode(message)];
    let added = db.prepare_cached(sql)?.execute(row)?;
    Ok(added == 1)
}
