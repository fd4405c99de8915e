//! Reading what the database holds.

use std::collections::BTreeMap;

use async_trait::async_trait;
use outlast_core::{EventId, ExecutionId, HistoryEvent, InstanceId, InstanceState, InstanceStatus, KvEntry, ShardId};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::SqliteStore;
use super::deletion::{executions_of, tree_of};
use super::failure::sql_error;
use super::leases::Ownerless;
use super::rows::{STATE, optional_millis, read_event, read_history, state_of, unsigned};
use crate::inspect::{OWNERLESS_MS, PROBLEMS_MAX, execution_status};
use crate::{
    Error, ExecutionInfo, InspectStore, InstanceInfo, InstanceTree, ListedStatus, ProblemRow, QueueDepths, Shortage,
    Standstill, SystemMetrics, SystemStats, TurnStore,
};

#[async_trait]
impl InspectStore for SqliteStore {
    async fn state(&self, instance: &InstanceId) -> Result<Option<InstanceState>, Error> {
        let instance = instance.clone();
        self.connections
            .read(move |db| {
                let sql = format!("SELECT {STATE} FROM instances WHERE id = ?1");
                let mut query = db.prepare_cached(&sql).map_err(sql_error)?;
                query.query_row([instance.as_str()], state_of).optional().map_err(sql_error)
            })
            .await
    }

    async fn info(&self, instance: &InstanceId) -> Result<Option<InstanceInfo>, Error> {
        let instance = instance.clone();
        self.connections
            .read(move |db| {
                let sql = format!("SELECT {STATE}, id, created, updated, parent FROM instances WHERE id = ?1");
                let mut query = db.prepare_cached(&sql).map_err(sql_error)?;
                query.query_row([instance.as_str()], info_of).optional().map_err(sql_error)
            })
            .await
    }

    async fn tree(&self, instance: &InstanceId) -> Result<InstanceTree, Error> {
        let instance = instance.clone();
        self.connections
            .inspect(move |db| {
                let all_ids = tree_of(db, &instance).map_err(sql_error)?;
                Ok(InstanceTree { root_id: instance.as_str().to_owned(), all_ids })
            })
            .await
    }

    async fn list(&self, status: Option<ListedStatus>) -> Result<Vec<String>, Error> {
        let (status, paused) = status.map(ListedStatus::columns).unzip();
        let (status, paused) = (status.map(InstanceStatus::as_str), paused.flatten());
        self.connections
            .inspect(move |db| {
                let sql = "SELECT id FROM instances WHERE ?1 IS NULL OR (status = ?1 AND (?2 IS NULL OR paused = ?2)) \
                           ORDER BY created DESC, id";
                let mut query = db.prepare_cached(sql).map_err(sql_error)?;
                let rows = query.query_map(params![status, paused], |row| row.get(0)).map_err(sql_error)?;
                rows.collect::<Result<_, _>>().map_err(sql_error)
            })
            .await
    }

    async fn executions(&self, instance: &InstanceId) -> Result<Vec<ExecutionInfo>, Error> {
        let instance = instance.clone();
        self.connections
            .inspect(move |db| {
                let executions = executions_of(db, &instance).map_err(sql_error)?;
                executions.into_iter().map(|execution| execution_info(db, &instance, execution)).collect()
            })
            .await
    }

    async fn history(
        &self,
        instance: &InstanceId,
        execution: ExecutionId,
        only: Option<EventId>,
    ) -> Result<Vec<HistoryEvent>, Error> {
        let instance = instance.clone();
        match only {
            // Short, and asked by workers: it does not wait behind long looks.
            Some(event) => {
                let read = move |db: &Connection| read_event(db, &instance, execution, event);
                Ok(self.connections.read(read).await?.into_iter().collect())
            }
            None => self.connections.inspect(move |db| read_history(db, &instance, execution)).await,
        }
    }

    async fn kv(&self, instance: &InstanceId, key: Option<&str>) -> Result<Vec<KvEntry>, Error> {
        let (instance, key) = (instance.clone(), key.map(str::to_owned));
        self.connections
            .read(move |db| {
                let sql =
                    "SELECT key, value, updated FROM kv WHERE instance = ?1 AND (?2 IS NULL OR key = ?2) ORDER BY key";
                let mut query = db.prepare_cached(sql).map_err(sql_error)?;
                let entry = |row: &Row<'_>| {
                    Ok(KvEntry { key: row.get(0)?, value: row.get(1)?, last_updated_at_ms: unsigned(row, 2)? })
                };
                let rows = query.query_map(params![instance.as_str(), key], entry).map_err(sql_error)?;
                rows.collect::<Result<_, _>>().map_err(sql_error)
            })
            .await
    }

    async fn metrics(&self) -> Result<(SystemMetrics, QueueDepths), Error> {
        self.connections.inspect(|db| metrics(db).map_err(sql_error)).await
    }

    async fn stats(&self, instance: &InstanceId) -> Result<Option<SystemStats>, Error> {
        let instance = instance.clone();
        self.connections.inspect(move |db| stats(db, &instance).optional().map_err(sql_error)).await
    }

    async fn problems(&self) -> Result<Vec<ProblemRow>, Error> {
        let (reported, ownerless) = (self.leases.reported(), self.leases.ownerless());
        let latest = self.now().0.saturating_sub(OWNERLESS_MS).cast_signed();
        let is_stored = reported.is_none();
        let read = self.connections.inspect(move |db| {
            let mut found = problems(db, is_stored).map_err(sql_error)?;
            let (why, shards) = match &ownerless {
                Ownerless::RunsElsewhere => return Ok(found),
                Ownerless::All => (Standstill::NoNode, None),
                Ownerless::Some(shards) => (Standstill::NoOwner, Some(shards.as_slice())),
            };
            found.extend(ownerless_in(db, why, shards, latest).map_err(sql_error)?);
            Ok(found)
        });
        let mut found = read.await?;
        found.extend(merged(reported.unwrap_or_default()));
        found.sort_by(|one, other| one.instance.as_str().cmp(other.instance.as_str()));
        Ok(found)
    }
}

/// What the database knows: turns that cannot begin, paused instances and, unless this process knows better, what nodes have
/// reported.
fn problems(db: &Connection, with_reports: bool) -> rusqlite::Result<Vec<ProblemRow>> {
    let sql = "SELECT id, orchestration, waits, stalled, wake_at, 1, updated FROM instances \
               WHERE stalled > 0 AND status = 'Running' UNION ALL \
               SELECT id, orchestration, ?1, 0, NULL, 1, updated FROM instances \
               WHERE paused = 1 AND status = 'Running' UNION ALL \
               SELECT instance, orchestration, reason, 0, NULL, sum(waiting), min(since) FROM shortages \
               WHERE ?2 GROUP BY reason ORDER BY 1 LIMIT ?3";
    let mut query = db.prepare_cached(sql)?;
    query.query_map(params![Standstill::Paused.to_string(), with_reports, PROBLEMS_MAX as i64], problem_of)?.collect()
}

/// What stands still because nobody runs its shard; at most one problem.
fn ownerless_in(
    db: &Connection,
    why: Standstill,
    shards: Option<&[ShardId]>,
    latest: i64,
) -> rusqlite::Result<Option<ProblemRow>> {
    if shards.is_some_and(<[ShardId]>::is_empty) {
        return Ok(None);
    }
    // Bare columns beside `min` are those of its row: who waits longest.
    let sql = "SELECT id, orchestration, ?1, 0, NULL, count(*), min(updated) FROM (SELECT id, orchestration, updated \
               FROM instances WHERE status = 'Running' AND paused = 0 AND stalled = 0 AND updated <= ?2 \
               AND (?3 IS NULL OR shard IN (SELECT value FROM json_each(?3))) LIMIT ?4) HAVING count(*) > 0";
    let shards = shards.map(|shards| {
        let numbers: Vec<String> = shards.iter().map(|shard| shard.0.to_string()).collect();
        format!("[{}]", numbers.join(","))
    });
    let mut query = db.prepare_cached(sql)?;
    query.query_row(params![why.to_string(), latest, shards, PROBLEMS_MAX as i64], problem_of).optional()
}

/// Counts what several nodes have reported together, as the database does.
fn merged(reported: Vec<Shortage>) -> impl Iterator<Item = ProblemRow> {
    let mut by_reason: BTreeMap<String, ProblemRow> = BTreeMap::new();
    for Shortage { reason, instance, orchestration, waiting, since } in reported {
        let new =
            ProblemRow { instance, orchestration, waits: reason.clone(), stalled: 0, wake_at: None, waiting: 0, since };
        let known = by_reason.entry(reason).or_insert_with(|| new.clone());
        let waiting = known.waiting.saturating_add(waiting);
        if new.since < known.since {
            *known = new;
        }
        known.waiting = waiting;
    }
    by_reason.into_values()
}

fn problem_of(row: &Row<'_>) -> rusqlite::Result<ProblemRow> {
    Ok(ProblemRow {
        instance: InstanceId::from(row.get::<_, String>(0)?),
        orchestration: row.get(1)?,
        waits: row.get(2)?,
        stalled: row.get(3)?,
        wake_at: optional_millis(row, 4)?,
        waiting: row.get(5)?,
        since: optional_millis(row, 6)?.unwrap_or_default(),
    })
}

fn info_of(row: &Row<'_>) -> rusqlite::Result<InstanceInfo> {
    Ok(InstanceInfo::new(row.get(15)?, state_of(row)?, unsigned(row, 16)?, unsigned(row, 17)?, row.get(18)?))
}

fn execution_info(db: &Connection, instance: &InstanceId, execution: ExecutionId) -> Result<ExecutionInfo, Error> {
    let sql = "SELECT count(*), min(event_id), max(event_id) FROM history WHERE instance = ?1 AND execution = ?2";
    let (event_count, first, last): (usize, Option<i64>, Option<i64>) = db
        .prepare_cached(sql)
        .and_then(|mut query| {
            let numbers = params![instance.as_str(), execution.0.cast_signed()];
            query.query_row(numbers, |row| Ok((row.get::<_, u32>(0)? as usize, row.get(1)?, row.get(2)?)))
        })
        .map_err(sql_error)?;
    let event = |id: Option<i64>| match id {
        Some(id) => read_event(db, instance, execution, EventId(id.cast_unsigned())),
        None => Ok(None),
    };
    let first = event(first)?;
    let last = event(last)?;
    let (status, output) = last.as_ref().map_or(("Running", None), |event| execution_status(&event.kind));
    let last = last.filter(|event| event.kind.is_terminal());
    Ok(ExecutionInfo {
        execution_id: execution.0,
        status: status.to_owned(),
        output,
        started_at: first.map_or(0, |event| event.at.0),
        completed_at: last.map(|event| event.at.0),
        event_count,
    })
}

fn metrics(db: &Connection) -> rusqlite::Result<(SystemMetrics, QueueDepths)> {
    let mut metrics = SystemMetrics::default();
    let mut query = db.prepare_cached("SELECT status, count(*), sum(paused) FROM instances GROUP BY status")?;
    for row in query.query_map([], |row| Ok((row.get::<_, String>(0)?, unsigned(row, 1)?, unsigned(row, 2)?)))? {
        let (status, count, paused) = row?;
        metrics.total_instances += count;
        match InstanceStatus::parse(&status) {
            Some(InstanceStatus::Running) => {
                (metrics.running_instances, metrics.paused_instances) = (count, paused);
            }
            Some(InstanceStatus::Completed) => metrics.completed_instances = count,
            Some(InstanceStatus::Failed) => metrics.failed_instances = count,
            None => {}
        }
    }
    let count = |sql: &str| db.prepare_cached(sql)?.query_row([], |row| unsigned(row, 0));
    metrics.total_events = count("SELECT count(*) FROM history")?;
    metrics.total_executions = count("SELECT count(*) FROM history WHERE event_id = 1")?;
    let depths = QueueDepths {
        orchestrator_queue: count("SELECT count(*) FROM inbox")? as usize,
        worker_queue: count("SELECT coalesce(sum(pending), 0) FROM instances WHERE pending > 0")? as usize,
        timer_queue: count("SELECT count(*) FROM instances WHERE wake_at IS NOT NULL AND status = 'Running'")? as usize,
    };
    Ok((metrics, depths))
}

fn stats(db: &Connection, instance: &InstanceId) -> rusqlite::Result<SystemStats> {
    let id = instance.as_str();
    let execution: i64 =
        db.prepare_cached("SELECT execution FROM instances WHERE id = ?1")?.query_row([id], |row| row.get(0))?;
    let pair = |row: &Row<'_>| Ok((unsigned(row, 0)?, unsigned(row, 1)?));
    let sql = "SELECT count(*), coalesce(sum(length(data)), 0) FROM history WHERE instance = ?1 AND execution = ?2";
    let (history_event_count, history_size_bytes) = db.prepare_cached(sql)?.query_row(params![id, execution], pair)?;
    let sql = "SELECT count(*), coalesce(sum(length(CAST(value AS BLOB))), 0) FROM kv WHERE instance = ?1";
    let (kv_user_key_count, kv_total_value_bytes) = db.prepare_cached(sql)?.query_row([id], pair)?;
    let sql = "SELECT count(*) FROM inbox WHERE instance = ?1 AND queue IS NOT NULL";
    let queue_pending_count = db.prepare_cached(sql)?.query_row([id], |row| unsigned(row, 0))?;
    Ok(SystemStats {
        history_event_count,
        history_size_bytes,
        queue_pending_count,
        kv_user_key_count,
        kv_total_value_bytes,
    })
}
