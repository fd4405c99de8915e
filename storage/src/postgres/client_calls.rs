//! What comes from outside: starts, messages, forks, deletion. Calls that arrive together are written together.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use outlast_core::{Fork, InboxSeq, InstanceId, Message, MessageKind, Millis, ShardId, encode};
use sqlx::PgConnection;

use super::PostgresStore;
use super::clock::ServerClock;
use super::escaped_text::{given, may_exist, stored};
use super::pool::Pool;
use super::trips::Batcher;
use super::turn_arrays::{number_of, parent_of, queue_of, small};
use crate::arrival::Listener;
use crate::bulk;
use crate::error::panicked;
use crate::{
    Arrival, CallStore, DeleteInstanceResult, DeleteOptions, Error, HeartbeatOf, InstanceFilter, PruneOptions,
    PruneResult, Receipt, SendOptions, StartConflict, StartOutcome, StartReceipt, StartRequest,
};

/// Batched writes; one trip at a time keeps the order of a sender's messages.
pub(super) struct Calls {
    /// The row of the first message of each instance that is new.
    starts: Batcher<Start, Option<InboxSeq>>,
    sends: Batcher<Send, Sent>,
}

/// A start as it is written, and as it was asked for.
struct Start {
    request: Arc<StartRequest>,
    id: String,
    shard: i16,
    orchestration: String,
    parent: Option<String>,
    message_id: String,
    data: Vec<u8>,
}

/// A message as it is written.
struct Send {
    receiver: String,
    message_id: String,
    queue: Option<String>,
    data: Vec<u8>,
    queue_max: i32,
}

/// Where a trip goes, and who is told of what it has brought.
#[derive(Clone)]
struct Written {
    pool: Pool,
    clock: Arc<ServerClock>,
    listener: Listener,
}

/// What became of a message: the outcome of `send_messages` and the receiver's shard.
type Sent = (i16, Option<i16>);
/// The outcome of a message that waits in the inbox now.
const WRITTEN: i16 = 1;
/// The outcome of a message to nobody, and the result of a deletion of nothing.
const NOBODY: i16 = 0;
const GONE: i16 = 1;

impl Written {
    /// Tells of messages that are durable now.
    fn sent(&self, now: Millis, receivers: Vec<InstanceId>, sent: &[Sent]) {
        self.clock.heard(now);
        for (instance, outcome) in receivers.into_iter().zip(sent) {
            if let (WRITTEN, Some(shard)) = *outcome {
                self.listener.tell(Arrival::Nudge(ShardId(shard.cast_unsigned()), instance));
            }
        }
    }
}

impl Calls {
    pub(super) fn start(pool: &Pool, clock: &Arc<ServerClock>, listener: &Listener) -> Self {
        let starts = Written { pool: pool.clone(), clock: Arc::clone(clock), listener: listener.clone() };
        let sends = starts.clone();
        Self {
            starts: Batcher::start(1, move |batch| write_starts(starts.clone(), batch)),
            sends: Batcher::start(1, move |batch| write_sends(sends.clone(), batch)),
        }
    }
}

/// Writes starts; an id that was not free gets no row.
async fn write_starts(to: Written, batch: Vec<Start>) -> Result<Vec<Option<InboxSeq>>, Error> {
    // Of two starts of one id the second finds it taken.
    let mut firsts = HashSet::new();
    let first: Vec<bool> = batch.iter().map(|start| firsts.insert(start.id.clone())).collect();
    let requests: Vec<_> = batch.iter().map(|start| (Arc::clone(&start.request), start.shard)).collect();
    let mut ids = Vec::with_capacity(batch.len());
    let (mut shards, mut names, mut parents) = (Vec::new(), Vec::new(), Vec::new());
    let (mut message_ids, mut datas) = (Vec::new(), Vec::new());
    for start in batch.into_iter().zip(&first).filter_map(|(start, first)| first.then_some(start)) {
        ids.push(start.id);
        shards.push(start.shard);
        names.push(start.orchestration);
        parents.push(start.parent);
        message_ids.push(start.message_id);
        datas.push(start.data);
    }
    let mut asked = ids.clone().into_iter();
    let (now, made, seqs): (i64, Vec<String>, Vec<i64>) = to
        .pool
        .run(|db| {
            Box::pin(async move {
                let query = sqlx::query_as("SELECT now, made, seqs FROM begin_instances($1, $2, $3, $4, $5, $6)");
                let query = query.bind(ids).bind(shards).bind(names).bind(parents).bind(message_ids).bind(datas);
                Ok(query.fetch_one(&mut **db).await?)
            })
        })
        .await?;
    to.clock.heard(Millis(now.cast_unsigned()));
    let made: HashMap<String, i64> = made.into_iter().zip(seqs).collect();
    let mut row = || asked.next().and_then(|id| made.get(&id).copied().map(InboxSeq));
    let rows: Vec<Option<InboxSeq>> = first.into_iter().map(|first| first.then(&mut row).flatten()).collect();
    for ((request, shard), seq) in requests.into_iter().zip(&rows) {
        if seq.is_some() {
            to.listener.tell(Arrival::started(request, &new_instance(ShardId(shard.cast_unsigned()), *seq)));
        }
    }
    Ok(rows)
}

fn new_instance(shard: ShardId, seq: Option<InboxSeq>) -> StartReceipt {
    StartReceipt { shard, outcome: StartOutcome::Started, seq }
}

async fn write_sends(to: Written, batch: Vec<Send>) -> Result<Vec<Sent>, Error> {
    let told: Vec<InstanceId> = batch.iter().map(|send| InstanceId::new(&send.receiver)).collect();
    let (now, sent) = to.pool.run(|db| Box::pin(async move { Ok(send_messages(&mut *db, batch).await?) })).await?;
    to.sent(now, told, &sent);
    Ok(sent)
}

async fn send_messages(db: &mut PgConnection, batch: Vec<Send>) -> Result<(Millis, Vec<Sent>), sqlx::Error> {
    let (mut receivers, mut ids, mut queues) = (Vec::new(), Vec::new(), Vec::new());
    let (mut datas, mut limits) = (Vec::new(), Vec::new());
    for send in batch {
        receivers.push(send.receiver);
        ids.push(send.message_id);
        queues.push(send.queue);
        datas.push(send.data);
        limits.push(send.queue_max);
    }
    let query = sqlx::query_as("SELECT now, outcomes, shards FROM send_messages($1, $2, $3, $4, $5)");
    let query = query.bind(receivers).bind(ids).bind(queues).bind(datas).bind(limits);
    let (now, outcomes, shards): (i64, Vec<i16>, Vec<Option<i16>>) = query.fetch_one(db).await?;
    Ok((Millis(now.cast_unsigned()), outcomes.into_iter().zip(shards).collect()))
}

/// What became of a deletion: the row that `delete_tree` gives.
type Deleted = (i16, Option<String>, i64, i64, i64, i64);

async fn delete_tree(db: &mut PgConnection, root: String, force: bool) -> Result<Deleted, sqlx::Error> {
    let sql = "SELECT result, culprit, coalesce(instances_deleted, 0), coalesce(executions_deleted, 0), \
               coalesce(events_deleted, 0), coalesce(messages_deleted, 0) FROM delete_tree($1, $2)";
    sqlx::query_as(sql).bind(root).bind(force).fetch_one(db).await
}

/// Holds the row of an instance that was there at a moment; `false` when none was.
async fn hold_since(db: &mut PgConnection, instance: &str, moment: Millis) -> Result<bool, sqlx::Error> {
    let query = sqlx::query_scalar::<_, Option<bool>>("SELECT hold_since($1, $2)").bind(instance);
    let query = query.bind(moment.0.cast_signed());
    Ok(query.fetch_one(db).await?.unwrap_or(false))
}

#[async_trait]
impl CallStore for PostgresStore {
    async fn start(&self, request: StartRequest) -> Result<StartReceipt, Error> {
        let MessageKind::Start(message) = &request.message.kind else {
            return Err(Error::unusable("a start needs a start message"));
        };
        let shard = ShardId::of(&request.instance, self.shards);
        let data = encode(&request.message);
        let (name, request) = (message.name.clone(), Arc::new(request));
        let start = Start {
            request: Arc::clone(&request),
            id: request.instance.as_str().to_owned(),
            shard: small(shard),
            orchestration: name.clone(),
            parent: parent_of(&request.message),
            message_id: request.message.id.as_str().to_owned(),
            data,
        };
        let bytes = start.data.len();
        if let Some(seq) = self.calls.starts.call(start, bytes).await? {
            return Ok(new_instance(shard, Some(seq)));
        }
        self.existing(request, &name).await
    }

    async fn send(&self, instance: &InstanceId, message: Message, options: SendOptions) -> Result<Receipt, Error> {
        let queue = queue_of(&message);
        let send = Send {
            receiver: instance.as_str().to_owned(),
            message_id: message.id.as_str().to_owned(),
            queue: queue.clone(),
            data: encode(&message),
            queue_max: i32::try_from(options.queue_messages_max).unwrap_or(i32::MAX),
        };
        let bytes = send.data.len();
        let (outcome, shard) = match options.first_tried {
            None => self.calls.sends.call(send, bytes).await?,
            Some(first_tried) => self.send_again(send, first_tried).await?,
        };
        let shard = shard.map(|shard| ShardId(shard.cast_unsigned()));
        match (outcome, shard) {
            (WRITTEN, shard) => Ok(Receipt { nudge: shard }),
            (2, _) => Ok(Receipt { nudge: None }),
            (3, _) => {
                let queue = queue.unwrap_or_default();
                Err(Error::QueueFull { instance: instance.clone(), queue, max: options.queue_messages_max })
            }
            // What becomes of it is known in a moment: it is gone, or its next life has begun.
            (4, _) => Err(Error::unavailable(format!("instance {instance} is being deleted or begun anew, try again"))),
            _ => Err(Error::InstanceNotFound(instance.clone())),
        }
    }

    async fn save_heartbeat(&self, of: HeartbeatOf<'_>, details: String) -> Result<(), Error> {
        let query = sqlx::query("SELECT save_heartbeat($1, $2, $3, $4, $5, $6)")
            .bind(of.key.instance.as_str().to_owned())
            .bind(of.key.execution.0.cast_signed())
            .bind(number_of(of.key.event.0))
            .bind(of.scheduled_at.0.cast_signed())
            .bind(of.activity.to_owned())
            .bind(stored(&details));
        self.pools.general.execute(query).await
    }

    async fn heartbeat(&self, instance: &InstanceId, activity: &str) -> Result<Option<String>, Error> {
        let sql = "SELECT details FROM heartbeats WHERE instance = $1 AND activity = $2";
        let (instance, activity) = (instance.as_str().to_owned(), activity.to_owned());
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                Ok(sqlx::query_scalar(sql).bind(instance).bind(activity).fetch_optional(&mut **db).await?)
            })
        });
        Ok(read.await?.map(given))
    }

    async fn import(&self, instance: &InstanceId, fork: Fork) -> Result<ShardId, Error> {
        let shard = ShardId::of(instance, self.shards);
        let (id, orchestration) = (instance.clone(), fork.state.orchestration.clone());
        let (pool, listener, imported) = (self.pools.general.clone(), self.listener.clone(), instance.clone());
        let made = self.see_through(async move {
            let made = pool.run(|db| Box::pin(import(db, id, shard, fork))).await?;
            if made {
                listener.tell(Arrival::Nudge(shard, imported));
            }
            Ok(made)
        });
        if made.await? { Ok(shard) } else { Err(Error::InstanceExists { instance: instance.clone(), orchestration }) }
    }

    async fn delete(&self, instance: &InstanceId, options: DeleteOptions) -> Result<DeleteInstanceResult, Error> {
        if !may_exist(instance) {
            return Err(Error::InstanceNotFound(instance.clone()));
        }
        let (id, DeleteOptions { force, first_tried }) = (instance.as_str().to_owned(), options);
        let delete = self.pools.general.run(|db| {
            Box::pin(async move {
                let Some(first_tried) = first_tried else { return Ok(delete_tree(&mut *db, id, force).await?) };
                let mut tx = sqlx::Connection::begin(&mut **db).await?;
                if !hold_since(&mut tx, &id, first_tried).await? {
                    return Ok((GONE, None, 0, 0, 0, 0));
                }
                let done = delete_tree(&mut tx, id, force).await?;
                tx.commit().await?;
                Ok(done)
            })
        });
        let done = delete.await?;
        match done.0 {
            0 => Ok(DeleteInstanceResult {
                instances_deleted: done.2.cast_unsigned(),
                executions_deleted: done.3.cast_unsigned(),
                events_deleted: done.4.cast_unsigned(),
                queue_messages_deleted: done.5.cast_unsigned(),
            }),
            2 => Err(Error::CannotDeleteSubOrchestration(instance.clone())),
            3 => Err(Error::InstanceStillRunning(InstanceId::from(done.1.unwrap_or_default()))),
            _ => Err(Error::InstanceNotFound(instance.clone())),
        }
    }

    async fn delete_bulk(&self, filter: InstanceFilter) -> Result<DeleteInstanceResult, Error> {
        bulk::delete(self, &filter).await
    }

    async fn prune(&self, instance: &InstanceId, options: PruneOptions) -> Result<PruneResult, Error> {
        let sql = "SELECT executions, events FROM prune_instance($1, $2, $3)";
        let id = instance.as_str().to_owned();
        let (keep, before) = (options.keep_last.map(i64::from), options.before());
        let done: (Option<i64>, Option<i64>) = self
            .pools
            .general
            .run(|db| {
                Box::pin(
                    async move { Ok(sqlx::query_as(sql).bind(id).bind(keep).bind(before).fetch_one(&mut **db).await?) },
                )
            })
            .await?;
        let (Some(executions), Some(events)) = done else { return Err(Error::InstanceNotFound(instance.clone())) };
        Ok(PruneResult {
            instances_processed: 1,
            executions_deleted: executions.cast_unsigned(),
            events_deleted: events.cast_unsigned(),
        })
    }

    async fn prune_bulk(&self, filter: InstanceFilter, options: PruneOptions) -> Result<PruneResult, Error> {
        bulk::prune(self, &filter, &options).await
    }
}

impl PostgresStore {
    /// Sends what may have been sent before, if its receiver is still the one of then. Alone, and in one transaction with the look.
    async fn send_again(&self, send: Send, first_tried: Millis) -> Result<Sent, Error> {
        let receiver = InstanceId::new(&send.receiver);
        let (pool, clock, listener) = (self.pools.general.clone(), Arc::clone(&self.clock), self.listener.clone());
        let to = Written { pool, clock, listener };
        let work = async move {
            let sent = to.pool.run(|db| {
                Box::pin(async move {
                    let mut tx = sqlx::Connection::begin(&mut **db).await?;
                    if !hold_since(&mut tx, &send.receiver, first_tried).await? {
                        return Ok(None);
                    }
                    let sent = send_messages(&mut tx, vec![send]).await?;
                    tx.commit().await?;
                    Ok(Some(sent))
                })
            });
            let Some((now, sent)) = sent.await? else { return Ok((NOBODY, None)) };
            to.sent(now, vec![receiver], &sent);
            Ok(sent.first().copied().unwrap_or((NOBODY, None)))
        };
        self.see_through(work).await
    }

    /// The id to start is taken.
    async fn existing(&self, request: Arc<StartRequest>, name: &str) -> Result<StartReceipt, Error> {
        let sql = "SELECT orchestration, shard, is_known(id, $2) FROM instances WHERE id = $1";
        let (id, message) = (request.instance.as_str().to_owned(), request.message.id.as_str().to_owned());
        let row: Option<(String, i16, bool)> = self
            .pools
            .general
            .run(|db| {
                Box::pin(async move { Ok(sqlx::query_as(sql).bind(id).bind(message).fetch_optional(&mut **db).await?) })
            })
            .await?;
        let gone = || Error::unavailable("the instance was deleted at the same time, try again");
        let (orchestration, shard, retried) = row.ok_or_else(gone)?;
        let shard = ShardId(shard.cast_unsigned());
        let foreign = orchestration != name && request.on_conflict != StartConflict::TerminateExisting;
        if foreign || (request.on_conflict == StartConflict::Fail && !retried) {
            return Err(Error::InstanceExists { instance: request.instance.clone(), orchestration });
        }
        if request.on_conflict == StartConflict::TerminateExisting {
            let receipt = StartReceipt { shard, outcome: StartOutcome::Replaced, seq: None };
            self.replace(request, receipt.clone()).await?;
            return Ok(receipt);
        }
        let outcome = if retried { StartOutcome::Started } else { StartOutcome::AlreadyExists };
        Ok(StartReceipt { shard, outcome, seq: None })
    }

    async fn replace(&self, request: Arc<StartRequest>, receipt: StartReceipt) -> Result<(), Error> {
        let MessageKind::Start(start) = &request.message.kind else { return Ok(()) };
        let replace = Message { id: request.message.id.clone(), kind: MessageKind::Replace(start.clone()) };
        let (id, name) = (request.instance.as_str().to_owned(), start.name.clone());
        let message_id = request.message.id.as_str().to_owned();
        let (start, replace) = (encode(&request.message), encode(&replace));
        let query = sqlx::query("SELECT replace_instance($1, $2, $3, $4, $5)").bind(id).bind(name);
        let (pool, listener) = (self.pools.general.clone(), self.listener.clone());
        let query = query.bind(message_id).bind(start).bind(replace);
        self.see_through(async move {
            pool.execute(query).await?;
            listener.tell(Arrival::started(request, &receipt));
            Ok(())
        })
        .await
    }

    /// Does what has consequences to the end, even when the caller goes away meanwhile.
    async fn see_through<T: std::marker::Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + std::marker::Send + 'static,
    ) -> Result<T, Error> {
        let ended = |failed: tokio::task::JoinError| match failed.try_into_panic() {
            Ok(panic) => Err(panicked(panic)),
            Err(_) => Err(Error::unavailable("the store is closed")),
        };
        self.executor.spawn(work).await.unwrap_or_else(ended)
    }
}

/// Writes a copied history; `false` when the id is taken.
async fn import(
    db: &mut sqlx::pool::PoolConnection<sqlx::Postgres>,
    id: InstanceId,
    shard: ShardId,
    Fork { state, history, kv }: Fork,
) -> Result<bool, super::failure::Failure> {
    let datas: Vec<Vec<u8>> = history.iter().map(|event| encode(&event.kind)).collect();
    let mut tx = sqlx::Connection::begin(&mut **db).await?;
    let sql = "INSERT INTO instances (execution, last_event_id, wake_at, custom_status_version, created, updated, pending, \
               shard, paused, status, id, orchestration, version, custom_status, history_bytes) \
               VALUES (1, $1, $2, $3, now_ms(), now_ms(), $4, $5, $6, 'Running', $7, $8, $9, $10, $11) ON CONFLICT (id) DO NOTHING";
    let made = sqlx::query(sql)
        .bind(state.last_event_id.0.cast_signed())
        .bind(state.wake_at.map(|at| at.0.cast_signed()))
        .bind(state.custom_status_version.cast_signed())
        .bind(state.pending.cast_signed())
        .bind(small(shard))
        .bind(state.paused)
        .bind(id.as_str())
        .bind(&state.orchestration)
        .bind(&state.version)
        .bind(state.custom_status.as_deref().map(stored))
        .bind(i64::try_from(datas.iter().map(Vec::len).sum::<usize>()).unwrap_or(i64::MAX))
        .execute(&mut *tx)
        .await?;
    if made.rows_affected() == 0 {
        return Ok(false);
    }
    let sql = "INSERT INTO history (instance, execution, event_id, source_event_id, epoch, at, data) \
               SELECT $1, 1, e.event, e.source, 0, e.at, e.data FROM unnest($2::int4[], $3::int4[], $4::int8[], $5::bytea[]) \
               AS e(event, source, at, data)";
    sqlx::query(sql)
        .bind(id.as_str())
        .bind(history.iter().map(|e| number_of(e.event_id.0)).collect::<Vec<_>>())
        .bind(history.iter().map(|e| e.source_event_id.map(|id| number_of(id.0))).collect::<Vec<_>>())
        .bind(history.iter().map(|e| e.at.0.cast_signed()).collect::<Vec<_>>())
        .bind(datas)
        .execute(&mut *tx)
        .await?;
    let sql = "INSERT INTO kv (instance, key, value, updated) \
               SELECT $1, k.key, k.value, k.updated FROM unnest($2::text[], $3::text[], $4::int8[]) AS k(key, value, updated)";
    sqlx::query(sql)
        .bind(id.as_str())
        .bind(kv.iter().map(|entry| entry.key.clone()).collect::<Vec<_>>())
        .bind(kv.iter().map(|entry| stored(&entry.value)).collect::<Vec<_>>())
        .bind(kv.iter().map(|entry| entry.last_updated_at_ms.cast_signed()).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(true)
}
