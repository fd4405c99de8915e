//! Reading what the database holds.

use async_trait::async_trait;
use outlast_core::{EventId, ExecutionId, HistoryEvent, InstanceId, InstanceState, InstanceStatus, KvEntry};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::PostgresStore;
use super::escaped_text::{given, may_exist};
use super::failure::Failure;
use super::rows::{STATE_COLUMNS, event_columns, event_of, optional_millis, state_columns, state_of, unsigned};
use super::turn_arrays::number_of;
use crate::inspect::{OWNERLESS_MS, PROBLEMS_MAX, execution_status};
use crate::{
    Error, ExecutionInfo, InspectStore, InstanceInfo, InstanceTree, ListedStatus, ProblemRow, QueueDepths, Standstill,
    SystemMetrics, SystemStats,
};

#[async_trait]
impl InspectStore for PostgresStore {
    async fn state(&self, instance: &InstanceId) -> Result<Option<InstanceState>, Error> {
        if !may_exist(instance) {
            return Ok(None);
        }
        self.reads.states.call(instance.clone(), 0).await?
    }

    async fn info(&self, instance: &InstanceId) -> Result<Option<InstanceInfo>, Error> {
        if !may_exist(instance) {
            return Ok(None);
        }
        let sql = concat!("SELECT ", state_columns!(), ", id, created, updated, parent FROM instances WHERE id = $1");
        let id = instance.as_str().to_owned();
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let row = sqlx::query(sql).bind(id).fetch_optional(&mut **db).await?;
                Ok(row.as_ref().map(info_of).transpose()?)
            })
        });
        read.await
    }

    async fn tree(&self, instance: &InstanceId) -> Result<InstanceTree, Error> {
        let root = instance.as_str().to_owned();
        let id = root.clone();
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let query = sqlx::query_scalar("SELECT member FROM tree_of($1) ORDER BY level, member").bind(id);
                Ok(query.fetch_all(&mut **db).await?)
            })
        });
        let mut all_ids: Vec<String> = read.await?;
        if all_ids.is_empty() {
            all_ids.push(root.clone());
        }
        Ok(InstanceTree { root_id: root, all_ids })
    }

    async fn list(&self, status: Option<ListedStatus>) -> Result<Vec<String>, Error> {
        let (status, paused) = status.map(ListedStatus::columns).unzip();
        let (status, paused) = (status.map(InstanceStatus::as_str), paused.flatten());
        let sql = "SELECT id FROM instances WHERE $1::text IS NULL OR (status = $1 AND ($2::bool IS NULL OR paused = $2)) \
                   ORDER BY created DESC, id";
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let query = sqlx::query_scalar(sql).bind(status).bind(paused);
                Ok(query.fetch_all(&mut **db).await?)
            })
        });
        read.await
    }

    async fn executions(&self, instance: &InstanceId) -> Result<Vec<ExecutionInfo>, Error> {
        // The first and the last event of each execution tell all.
        let sql = concat!(
            "SELECT ",
            event_columns!(),
            ", h.execution::int8, n, started FROM history h JOIN (SELECT execution, count(*) AS n, min(at) AS started, \
             max(event_id) AS last FROM history WHERE instance = $1 GROUP BY execution) e \
             ON e.execution = h.execution AND e.last = h.event_id WHERE instance = $1 ORDER BY h.execution"
        );
        let id = instance.clone();
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let rows = sqlx::query(sql).bind(id.as_str()).fetch_all(&mut **db).await?;
                rows.iter().map(|row| execution_of(&id, row)).collect()
            })
        });
        read.await
    }

    async fn history(
        &self,
        instance: &InstanceId,
        execution: ExecutionId,
        only: Option<EventId>,
    ) -> Result<Vec<HistoryEvent>, Error> {
        let sql = concat!(
            "SELECT ",
            event_columns!(),
            " FROM history WHERE instance = $1 AND execution = $2 AND event_id BETWEEN $3 AND $4 ORDER BY event_id"
        );
        let (id, execution) = (instance.clone(), number_of(execution.0));
        let (first, last) = only.map_or((1, i32::MAX), |only| (number_of(only.0), number_of(only.0)));
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let query = sqlx::query(sql).bind(id.as_str()).bind(execution).bind(first).bind(last);
                query.fetch_all(&mut **db).await?.iter().map(|row| event_of(&id, row)).collect()
            })
        });
        read.await
    }

    async fn kv(&self, instance: &InstanceId, key: Option<&str>) -> Result<Vec<KvEntry>, Error> {
        if !may_exist(instance) || key.is_some_and(|key| key.contains('\0')) {
            return Ok(Vec::new());
        }
        // Keys in the order of their bytes, whatever the database's language.
        let sql = "SELECT key, value, updated FROM kv WHERE instance = $1 AND ($2::text IS NULL OR key = $2) \
                   ORDER BY key COLLATE \"C\"";
        let (id, key) = (instance.as_str().to_owned(), key.map(str::to_owned));
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let rows = sqlx::query(sql).bind(id).bind(key).fetch_all(&mut **db).await?;
                let entry = |row: &PgRow| {
                    let (key, value) = (row.try_get(0)?, given(row.try_get(1)?));
                    Ok(KvEntry { key, value, last_updated_at_ms: unsigned(row, 2)? })
                };
                rows.iter().map(entry).collect()
            })
        });
        read.await
    }

    async fn metrics(&self) -> Result<(SystemMetrics, QueueDepths), Error> {
        let sql = "SELECT count(*), count(*) FILTER (WHERE status = 'Running'), count(*) FILTER (WHERE status = 'Completed'), \
                   count(*) FILTER (WHERE status = 'Failed'), (SELECT count(*) FROM history), \
                   (SELECT count(*) FROM history WHERE event_id = 1), (SELECT count(*) FROM inbox), \
                   coalesce(sum(pending) FILTER (WHERE pending > 0), 0)::int8, \
                   count(*) FILTER (WHERE wake_at IS NOT NULL AND status = 'Running'), \
                   count(*) FILTER (WHERE status = 'Running' AND paused) FROM instances";
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let row = sqlx::query(sql).fetch_one(&mut **db).await?;
                let counts = (0..10).map(|index| unsigned(&row, index)).collect::<Result<Vec<_>, _>>()?;
                Ok(counts)
            })
        });
        let counts = read.await?;
        let metrics = SystemMetrics {
            total_instances: counts[0],
            running_instances: counts[1],
            paused_instances: counts[9],
            completed_instances: counts[2],
            failed_instances: counts[3],
            total_events: counts[4],
            total_executions: counts[5],
        };
        let depth = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let depths = QueueDepths {
            orchestrator_queue: depth(counts[6]),
            worker_queue: depth(counts[7]),
            timer_queue: depth(counts[8]),
        };
        Ok((metrics, depths))
    }

    async fn stats(&self, instance: &InstanceId) -> Result<Option<SystemStats>, Error> {
        let sql = "SELECT (SELECT count(*) FROM history h WHERE h.instance = i.id AND h.execution = i.execution), \
                   (SELECT coalesce(sum(length(data)), 0)::int8 FROM history h WHERE h.instance = i.id AND h.execution = i.execution), \
                   (SELECT count(*) FROM inbox x WHERE x.instance = i.id AND x.queue IS NOT NULL), \
                   (SELECT count(*) FROM kv WHERE kv.instance = i.id), \
                   (SELECT coalesce(sum(octet_length(value)), 0)::int8 FROM kv WHERE kv.instance = i.id) \
                   FROM instances i WHERE i.id = $1";
        let id = instance.as_str().to_owned();
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let Some(row) = sqlx::query(sql).bind(id).fetch_optional(&mut **db).await? else { return Ok(None) };
                Ok(Some(SystemStats {
                    history_event_count: unsigned(&row, 0)?,
                    history_size_bytes: unsigned(&row, 1)?,
                    queue_pending_count: unsigned(&row, 2)?,
                    kv_user_key_count: unsigned(&row, 3)?,
                    kv_total_value_bytes: unsigned(&row, 4)?,
                }))
            })
        });
        read.await
    }

    async fn problems(&self) -> Result<Vec<ProblemRow>, Error> {
        let sql = "SELECT id, orchestration, waits, stalled, wake_at, 1::int8, updated FROM instances \
                   WHERE stalled > 0 AND status = 'Running' UNION ALL \
                   SELECT id, orchestration, $1, 0, NULL, 1::int8, updated FROM instances \
                   WHERE paused AND status = 'Running' UNION ALL \
                   SELECT min(instance), min(orchestration), reason, 0, NULL, sum(waiting)::int8, min(since) FROM shortages s \
                   JOIN nodes n ON n.id = s.node AND n.lease_until >= now_ms() GROUP BY reason ORDER BY 1 LIMIT $2";
        // Only when there are such shards: it looks at all running instances.
        let ownerless = "SELECT (array_agg(id ORDER BY updated))[1], (array_agg(orchestration ORDER BY updated))[1], $1, 0, \
                         NULL::int8, count(*), min(updated) FROM (SELECT id, orchestration, updated FROM instances \
                         WHERE status = 'Running' AND NOT paused AND stalled = 0 AND shard = ANY ($2) \
                         AND updated <= now_ms() - $3 LIMIT $4) waiting HAVING count(*) > 0";
        let limit = number_of(PROBLEMS_MAX as u64);
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let mut rows =
                    sqlx::query(sql).bind(Standstill::Paused.to_string()).bind(limit).fetch_all(&mut **db).await?;
                let (shards, served) = shards_without_owner(db).await?;
                if !shards.is_empty() {
                    let why = if served { Standstill::NoOwner } else { Standstill::NoNode };
                    let query = sqlx::query(ownerless).bind(why.to_string()).bind(shards);
                    rows.extend(query.bind(number_of(OWNERLESS_MS)).bind(limit).fetch_all(&mut **db).await?);
                }
                rows.iter().map(problem_of).collect()
            })
        });
        read.await
    }
}

/// Shards that no live node holds, and whether there is one that runs orchestrations.
async fn shards_without_owner(db: &mut PgConnection) -> Result<(Vec<i16>, bool), sqlx::Error> {
    let sql = "SELECT coalesce(array_agg(s.id) FILTER (WHERE n.id IS NULL), '{}'), \
               EXISTS (SELECT FROM nodes WHERE lease_until >= now_ms() AND handlers ~ $1) \
               FROM shards s LEFT JOIN nodes n ON n.id = s.owner AND n.lease_until >= now_ms()";
    sqlx::query_as(sql).bind(super::node_row::RUNS_ORCHESTRATIONS).fetch_one(db).await
}

fn problem_of(row: &PgRow) -> Result<ProblemRow, Failure> {
    Ok(ProblemRow {
        instance: InstanceId::from(row.try_get::<String, _>(0)?),
        orchestration: row.try_get(1)?,
        waits: row.try_get(2)?,
        stalled: row.try_get::<i32, _>(3)?.cast_unsigned(),
        wake_at: optional_millis(row, 4)?,
        waiting: u32::try_from(unsigned(row, 5)?).unwrap_or(u32::MAX),
        since: optional_millis(row, 6)?.unwrap_or_default(),
    })
}

fn info_of(row: &PgRow) -> Result<InstanceInfo, sqlx::Error> {
    let (id, parent) = (row.try_get(STATE_COLUMNS)?, row.try_get(STATE_COLUMNS + 3)?);
    let (created, updated) = (unsigned(row, STATE_COLUMNS + 1)?, unsigned(row, STATE_COLUMNS + 2)?);
    Ok(InstanceInfo::new(id, state_of(row)?, created, updated, parent))
}

/// An execution by its last event, followed by its number, count of events and first moment.
fn execution_of(instance: &InstanceId, row: &PgRow) -> Result<ExecutionInfo, Failure> {
    let last = event_of(instance, row)?;
    let ended = last.kind.is_terminal();
    let (status, output) = execution_status(&last.kind);
    Ok(ExecutionInfo {
        execution_id: unsigned(row, 5)?,
        status: status.to_owned(),
        output,
        started_at: unsigned(row, 7)?,
        completed_at: ended.then_some(last.at.0),
        event_count: usize::try_from(unsigned(row, 6)?).unwrap_or(usize::MAX),
    })
}
