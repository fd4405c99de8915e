//! What comes from outside: starts, messages, forks, deletion.

use std::sync::Arc;

use async_trait::async_trait;
use outlast_core::{Fork, InboxSeq, InstanceId, Message, MessageKind, Millis, ShardId, encode};
use rusqlite::{Connection, OptionalExtension, params};

use super::failure::sql_error;
use super::turns::{insert_instance, insert_message};
use super::{SqliteStore, deletion};
use crate::bulk;
use crate::{
    Arrival, CallStore, DeleteInstanceResult, DeleteOptions, Error, HeartbeatOf, InstanceFilter, PruneOptions,
    PruneResult, Receipt, SendOptions, StartConflict, StartOutcome, StartReceipt, StartRequest,
};

#[async_trait]
impl CallStore for SqliteStore {
    async fn start(&self, request: StartRequest) -> Result<StartReceipt, Error> {
        let (now, shards) = (self.clock.now(), self.shards);
        let bytes = request.message.payload_bytes();
        let request = Arc::new(request);
        let (listener, started) = (self.listener.clone(), Arc::clone(&request));
        let start = move |db: &Connection, _| {
            let MessageKind::Start(start) = &request.message.kind else {
                return Err(Error::unusable("a start needs a start message"));
            };
            let shard = ShardId::of(&request.instance, shards);
            if insert_instance(db, &request.instance, shard, start, now).map_err(sql_error)? {
                insert_message(db, &request.instance, shard, &request.message).map_err(sql_error)?;
                let seq = Some(InboxSeq(db.last_insert_rowid()));
                return Ok(StartReceipt { shard, outcome: StartOutcome::Started, seq });
            }
            existing(db, &request, &start.name)
        };
        let tell = move |receipt: &StartReceipt| listener.tell(Arrival::started(started, receipt));
        self.connections.write_then(bytes, start, tell).await
    }

    async fn send(&self, instance: &InstanceId, message: Message, options: SendOptions) -> Result<Receipt, Error> {
        let (bytes, since) = (message.payload_bytes(), options.first_tried);
        let (instance, receiver, listener) = (instance.clone(), instance.clone(), self.listener.clone());
        let tell = move |receipt: &Receipt| {
            if let Some(shard) = receipt.nudge {
                listener.tell(Arrival::Nudge(shard, receiver));
            }
        };
        let send = move |db: &Connection, _| {
            begun_before(db, &instance, since)?;
            send(db, &instance, &message, options.queue_messages_max)
        };
        self.connections.write_then(bytes, send, tell).await
    }

    async fn save_heartbeat(&self, of: HeartbeatOf<'_>, details: String) -> Result<(), Error> {
        let (key, scheduled_at, activity) = (of.key.clone(), of.scheduled_at.0.cast_signed(), of.activity.to_owned());
        // Not when it has its outcome, and not beside another life of the id, whose events are of other moments.
        let sql = "INSERT OR REPLACE INTO heartbeats (instance, activity, details) \
                   SELECT i.id, ?2, ?3 FROM instances i WHERE i.id = ?1 AND i.status = 'Running' AND i.execution = ?4 \
                   AND EXISTS (SELECT 1 FROM history WHERE instance = ?1 AND execution = ?4 AND event_id = ?5 AND at = ?6) \
                   AND NOT EXISTS (SELECT 1 FROM history WHERE instance = ?1 AND execution = ?4 AND source_event_id = ?5)";
        self.connections
            .write(move |db, _| {
                let (execution, event) = (key.execution.0.cast_signed(), key.event.0.cast_signed());
                let row = params![key.instance.as_str(), activity, details, execution, event, scheduled_at];
                db.prepare_cached(sql).and_then(|mut statement| statement.execute(row)).map(drop).map_err(sql_error)
            })
            .await
    }

    async fn heartbeat(&self, instance: &InstanceId, activity: &str) -> Result<Option<String>, Error> {
        let (instance, activity) = (instance.clone(), activity.to_owned());
        let sql = "SELECT details FROM heartbeats WHERE instance = ?1 AND activity = ?2";
        self.connections
            .read(move |db| {
                let row = params![instance.as_str(), activity];
                db.prepare_cached(sql)
                    .and_then(|mut query| query.query_row(row, |row| row.get(0)).optional())
                    .map_err(sql_error)
            })
            .await
    }

    async fn import(&self, instance: &InstanceId, fork: Fork) -> Result<ShardId, Error> {
        let (instance, now, shards) = (instance.clone(), self.clock.now(), self.shards);
        let (imported, listener) = (instance.clone(), self.listener.clone());
        let events: Vec<Vec<u8>> = fork.history.iter().map(|event| encode(&event.kind)).collect();
        let bytes = events.iter().map(Vec::len).sum();
        let import = move |db: &Connection, _| {
            let shard = ShardId::of(&instance, shards);
            let start = outlast_core::StartMessage {
                name: fork.state.orchestration.clone(),
                version: None,
                input: String::new(),
                parent: None,
                traceparent: None,
            };
            if !insert_instance(db, &instance, shard, &start, now).map_err(sql_error)? {
                let (instance, orchestration) = (instance.clone(), fork.state.orchestration.clone());
                return Err(Error::InstanceExists { instance, orchestration });
            }
            import(db, &instance, &fork, &events).map_err(sql_error)?;
            Ok(shard)
        };
        self.connections.write_then(bytes, import, move |shard| listener.tell(Arrival::Nudge(*shard, imported))).await
    }

    async fn delete(&self, instance: &InstanceId, options: DeleteOptions) -> Result<DeleteInstanceResult, Error> {
        let (instance, since) = (instance.clone(), options.first_tried);
        let delete = move |db: &Connection, _| {
            begun_before(db, &instance, since)?;
            deletion::delete(db, &instance, options.force)
        };
        self.connections.write(delete).await
    }

    async fn delete_bulk(&self, filter: InstanceFilter) -> Result<DeleteInstanceResult, Error> {
        bulk::delete(self, &filter).await
    }

    async fn prune(&self, instance: &InstanceId, options: PruneOptions) -> Result<PruneResult, Error> {
        let instance = instance.clone();
        self.connections.write(move |db, _| deletion::prune(db, &instance, &options)).await
    }

    async fn prune_bulk(&self, filter: InstanceFilter, options: PruneOptions) -> Result<PruneResult, Error> {
        bulk::prune(self, &filter, &options).await
    }
}

/// Refuses an instance that was begun after a repeated call was first made: it is not the one that the call is for.
fn begun_before(db: &Connection, instance: &InstanceId, since: Option<Millis>) -> Result<(), Error> {
    let Some(since) = since else { return Ok(()) };
    let sql = "SELECT 1 FROM instances WHERE id = ?1 AND created <= ?2";
    let row = params![instance.as_str(), since.0.cast_signed()];
    let found = db.prepare_cached(sql).and_then(|mut query| query.exists(row)).map_err(sql_error)?;
    if found { Ok(()) } else { Err(Error::InstanceNotFound(instance.clone())) }
}

fn existing(db: &Connection, request: &StartRequest, name: &str) -> Result<StartReceipt, Error> {
    let sql = "SELECT orchestration, shard FROM instances WHERE id = ?1";
    let (orchestration, shard) = db
        .prepare_cached(sql)
        .and_then(|mut query| {
            query.query_row([request.instance.as_str()], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))
        })
        .map_err(sql_error)?;
    let retried = is_known(db, &request.instance, &request.message)?;
    let foreign = orchestration != name && request.on_conflict != StartConflict::TerminateExisting;
    if foreign || (request.on_conflict == StartConflict::Fail && !retried) {
        return Err(Error::InstanceExists { instance: request.instance.clone(), orchestration });
    }
    if request.on_conflict == StartConflict::TerminateExisting {
        if !retried {
            replace(db, request, ShardId(shard)).map_err(sql_error)?;
        }
        return Ok(StartReceipt { shard: ShardId(shard), outcome: StartOutcome::Replaced, seq: None });
    }
    let outcome = if retried { StartOutcome::Started } else { StartOutcome::AlreadyExists };
    Ok(StartReceipt { shard: ShardId(shard), outcome, seq: None })
}

/// A running instance is told to begin anew; an ended one is made ready for its next execution here.
fn replace(db: &Connection, request: &StartRequest, shard: ShardId) -> rusqlite::Result<()> {
    let MessageKind::Start(start) = &request.message.kind else { return Ok(()) };
    let id = request.instance.as_str();
    let sql = "UPDATE instances SET status = 'Running', completed = NULL, output = NULL, execution = execution + 1, \
               last_event_id = 0, history_bytes = 0, stalled = 0, wake_at = NULL, pending = 0, paused = 0, waits = '', \
               orchestration = ?1, version = '', custom_status = NULL, \
               custom_status_version = custom_status_version + 1, parent = NULL WHERE id = ?2 AND status <> 'Running'";
    let message = if db.prepare_cached(sql)?.execute(params![start.name, id])? == 1 {
        // The turn that ended it may have told itself that the id of a child was taken: that was for the life that is over.
        db.prepare_cached("DELETE FROM inbox WHERE instance = ?1")?.execute([id])?;
        db.prepare_cached("DELETE FROM kv WHERE instance = ?1")?.execute([id])?;
        request.message.clone()
    } else {
        Message { id: request.message.id.clone(), kind: MessageKind::Replace(start.clone()) }
    };
    insert_message(db, &request.instance, shard, &message).map(drop)
}

/// Whether this message waits already or was applied.
fn is_known(db: &Connection, instance: &InstanceId, message: &Message) -> Result<bool, Error> {
    let ids = params![instance.as_str(), message.id.as_str()];
    let found = |sql| db.prepare_cached(sql).and_then(|mut query| query.exists(ids)).map_err(sql_error);
    Ok(found("SELECT 1 FROM inbox WHERE instance = ?1 AND message_id = ?2")?
        || found("SELECT 1 FROM history WHERE instance = ?1 AND message_id = ?2")?)
}

fn send(db: &Connection, instance: &InstanceId, message: &Message, queue_max: usize) -> Result<Receipt, Error> {
    let sql = "SELECT shard, status = 'Running' FROM instances WHERE id = ?1";
    let row: Option<(u16, bool)> = db
        .prepare_cached(sql)
        .and_then(|mut query| query.query_row([instance.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .map_err(sql_error)?;
    let (shard, running) = row.ok_or_else(|| Error::InstanceNotFound(instance.clone()))?;
    if !running || is_known(db, instance, message)? {
        return Ok(Receipt { nudge: None });
    }
    if let MessageKind::Enqueue { queue, .. } = &message.kind {
        let sql = "SELECT count(*) FROM inbox WHERE instance = ?1 AND queue = ?2";
        let waiting: usize = db
            .prepare_cached(sql)
            .and_then(|mut query| query.query_row(params![instance.as_str(), queue], |row| row.get::<_, u32>(0)))
            .map_err(sql_error)? as usize;
        if waiting >= queue_max {
            return Err(Error::QueueFull { instance: instance.clone(), queue: queue.clone(), max: queue_max });
        }
    }
    insert_message(db, instance, ShardId(shard), message).map_err(sql_error)?;
    Ok(Receipt { nudge: Some(ShardId(shard)) })
}

/// Writes a copied beginning; `events` is its history as it is stored.
fn import(db: &Connection, instance: &InstanceId, fork: &Fork, events: &[Vec<u8>]) -> rusqlite::Result<()> {
    let state = &fork.state;
    let sql = "UPDATE instances SET version = ?1, paused = ?2, last_event_id = ?3, wake_at = ?4, pending = ?5, \
               custom_status = ?6, custom_status_version = ?7, history_bytes = ?8 WHERE id = ?9";
    let history_bytes = events.iter().map(|data| data.len() as u64).sum::<u64>();
    db.prepare_cached(sql)?.execute(params![
        state.version,
        state.paused,
        state.last_event_id.0.cast_signed(),
        state.wake_at.map(|at| at.0.cast_signed()),
        state.pending,
        state.custom_status,
        state.custom_status_version.cast_signed(),
        history_bytes.cast_signed(),
        instance.as_str(),
    ])?;
    let sql = "INSERT INTO history (instance, execution, event_id, source_event_id, epoch, at, data) \
               VALUES (?1, 1, ?2, ?3, 0, ?4, ?5)";
    let mut insert = db.prepare_cached(sql)?;
    for (event, data) in fork.history.iter().zip(events) {
        insert.execute(params![
            instance.as_str(),
            event.event_id.0.cast_signed(),
            event.source_event_id.map(|id| id.0.cast_signed()),
            event.at.0.cast_signed(),
            data,
        ])?;
    }
    let sql = "INSERT INTO kv (instance, key, value, updated) VALUES (?1, ?2, ?3, ?4)";
    let mut insert = db.prepare_cached(sql)?;
    for entry in &fork.kv {
        insert.execute(params![instance.as_str(), entry.key, entry.value, entry.last_updated_at_ms.cast_signed()])?;
    }
    Ok(())
}
