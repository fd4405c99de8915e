//! Deleting instances and pruning executions.

use outlast_core::{ExecutionId, InstanceId};
use rusqlite::{Connection, OptionalExtension, params};

use super::failure::sql_error;
use crate::{DeleteInstanceResult, Error, PruneOptions, PruneResult};

pub(super) fn delete(db: &Connection, instance: &InstanceId, force: bool) -> Result<DeleteInstanceResult, Error> {
    let sql = "SELECT parent FROM instances WHERE id = ?1";
    let parent: Option<Option<String>> = db
        .prepare_cached(sql)
        .and_then(|mut query| query.query_row([instance.as_str()], |row| row.get(0)).optional())
        .map_err(sql_error)?;
    match parent {
        None => return Err(Error::InstanceNotFound(instance.clone())),
        Some(Some(_)) => return Err(Error::CannotDeleteSubOrchestration(instance.clone())),
        Some(None) => {}
    }
    let tree = tree_of(db, instance).map_err(sql_error)?;
    if !force {
        for id in &tree {
            let sql = "SELECT 1 FROM instances WHERE id = ?1 AND status = 'Running'";
            if db.prepare_cached(sql).and_then(|mut query| query.exists([id])).map_err(sql_error)? {
                return Err(Error::InstanceStillRunning(InstanceId::new(id)));
            }
        }
    }
    let mut result = DeleteInstanceResult::default();
    for id in &tree {
        delete_one(db, id, &mut result).map_err(sql_error)?;
    }
    Ok(result)
}

pub(super) fn prune(db: &Connection, instance: &InstanceId, options: &PruneOptions) -> Result<PruneResult, Error> {
    let sql = "SELECT execution FROM instances WHERE id = ?1";
    let current: Option<i64> = db
        .prepare_cached(sql)
        .and_then(|mut query| query.query_row([instance.as_str()], |row| row.get(0)).optional())
        .map_err(sql_error)?;
    let current = current.ok_or_else(|| Error::InstanceNotFound(instance.clone()))?;
    let mut result = PruneResult { instances_processed: 1, ..PruneResult::default() };
    if options.keep_last.is_none() && options.completed_before.is_none() {
        return Ok(result);
    }
    let keep_from = options.keep_last.map_or(current, |keep| current - i64::from(keep.max(1)) + 1);
    let sql = "SELECT execution FROM history WHERE instance = ?1 AND execution < ?2 AND execution < ?3 \
               GROUP BY execution HAVING max(at) < ?4";
    let before = options.before().unwrap_or(i64::MAX);
    let executions: Vec<i64> = db
        .prepare_cached(sql)
        .and_then(|mut query| {
            query.query_map(params![instance.as_str(), current, keep_from, before], |row| row.get(0))?.collect()
        })
        .map_err(sql_error)?;
    for execution in executions {
        let sql = "DELETE FROM history WHERE instance = ?1 AND execution = ?2";
        let events = db
            .prepare_cached(sql)
            .and_then(|mut s| s.execute(params![instance.as_str(), execution]))
            .map_err(sql_error)?;
        result.executions_deleted += 1;
        result.events_deleted += events as u64;
    }
    Ok(result)
}

/// The instance and its descendants, parents first.
pub(super) fn tree_of(db: &Connection, root: &InstanceId) -> rusqlite::Result<Vec<String>> {
    let sql = "WITH RECURSIVE tree(id, depth) AS (SELECT ?1, 0 UNION SELECT i.id, depth + 1 FROM instances i JOIN tree t \
               ON i.parent = t.id) SELECT id FROM tree ORDER BY depth, id";
    db.prepare_cached(sql)?.query_map([root.as_str()], |row| row.get(0))?.collect()
}

fn delete_one(db: &Connection, id: &str, result: &mut DeleteInstanceResult) -> rusqlite::Result<()> {
    let executions: u32 = db
        .prepare_cached("SELECT count(DISTINCT execution) FROM history WHERE instance = ?1")?
        .query_row([id], |row| row.get(0))?;
    result.executions_deleted += u64::from(executions);
    result.events_deleted += db.prepare_cached("DELETE FROM history WHERE instance = ?1")?.execute([id])? as u64;
    result.queue_messages_deleted += db.prepare_cached("DELETE FROM inbox WHERE instance = ?1")?.execute([id])? as u64;
    db.prepare_cached("DELETE FROM kv WHERE instance = ?1")?.execute([id])?;
    db.prepare_cached("DELETE FROM heartbeats WHERE instance = ?1")?.execute([id])?;
    result.instances_deleted += db.prepare_cached("DELETE FROM instances WHERE id = ?1")?.execute([id])? as u64;
    Ok(())
}

/// Executions of an instance, oldest first.
pub(super) fn executions_of(db: &Connection, instance: &InstanceId) -> rusqlite::Result<Vec<ExecutionId>> {
    let sql = "SELECT DISTINCT execution FROM history WHERE instance = ?1 ORDER BY execution";
    let mut query = db.prepare_cached(sql)?;
    let rows = query.query_map([instance.as_str()], |row| row.get::<_, i64>(0))?;
    rows.map(|row| row.map(|execution| ExecutionId(execution.cast_unsigned()))).collect()
}
