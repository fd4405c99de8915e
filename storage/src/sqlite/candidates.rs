//! Which instances a bulk operation is for.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::SqliteStore;
use super::failure::sql_error;
use crate::Error;
use crate::bulk::{Bulk, Candidates, EndedRoot, PRUNE_PAGE, PrunePage};

#[async_trait]
impl Candidates for SqliteStore {
    /// So many share a durable commit.
    const AT_ONCE: usize = 64;

    async fn ended_roots(&self, asked: &Bulk, after: Option<EndedRoot>, max: u32) -> Result<Vec<EndedRoot>, Error> {
        let asked = asked.clone();
        self.connections.read(move |db| ended_roots(db, &asked, after.as_ref(), max).map_err(sql_error)).await
    }

    async fn prunable(&self, asked: &Bulk, after: &str) -> Result<PrunePage, Error> {
        let (asked, after) = (asked.clone(), after.to_owned());
        self.connections.read(move |db| prunable(db, &asked, &after).map_err(sql_error)).await
    }
}

fn ended_roots(db: &Connection, asked: &Bulk, after: Option<&EndedRoot>, max: u32) -> rusqlite::Result<Vec<EndedRoot>> {
    let root = |row: &Row<'_>| Ok(EndedRoot { completed: row.get(0)?, id: row.get(1)? });
    let before = asked.completed_before.unwrap_or(i64::MAX);
    let (completed, id) = after.map_or((i64::MIN, ""), |root| (root.completed, root.id.as_str()));
    let is_ended = "SELECT completed, id FROM instances i WHERE completed IS NOT NULL AND parent IS NULL AND completed < ?1 \
                    AND NOT EXISTS (SELECT 1 FROM instances c WHERE c.parent = i.id AND c.status = 'Running')";
    let Some(ids) = &asked.ids else {
        let sql = format!("{is_ended} AND (completed, id) > (?2, ?3) ORDER BY completed, id LIMIT ?4");
        let mut query = db.prepare_cached(&sql)?;
        return query.query_map(params![before, completed, id, max], root)?.collect();
    };
    // All of those that are named are one page.
    if after.is_some() {
        return Ok(Vec::new());
    }
    let mut query = db.prepare_cached(&format!("{is_ended} AND id = ?2"))?;
    let found = ids.iter().map(|id| query.query_row(params![before, id], root).optional());
    let mut roots = found.filter_map(Result::transpose).collect::<rusqlite::Result<Vec<EndedRoot>>>()?;
    roots.sort_by(|one, other| (one.completed, &one.id).cmp(&(other.completed, &other.id)));
    roots.dedup_by(|one, other| one.id == other.id);
    Ok(roots)
}

fn prunable(db: &Connection, asked: &Bulk, after: &str) -> rusqlite::Result<PrunePage> {
    let can_be_pruned = "execution > 1 AND (?2 IS NULL OR completed < ?2) AND EXISTS (SELECT 1 FROM history h \
                         WHERE h.instance = p.id AND h.terminal = 1 AND h.execution <= p.execution - ?3 AND h.at < ?4)";
    let (before, keep, ended_before) = (asked.completed_before, asked.keep_last, asked.ended_before);
    let Some(ids) = &asked.ids else {
        let page = "SELECT id, execution, completed FROM instances WHERE id > ?1 ORDER BY id LIMIT ?5";
        let sql = format!("SELECT id, {can_be_pruned} FROM ({page}) p ORDER BY id");
        let mut query = db.prepare_cached(&sql)?;
        let mut rows = query.query(params![after, before, keep, ended_before, PRUNE_PAGE])?;
        let mut found = PrunePage { ids: Vec::new(), last: None };
        while let Some(row) = rows.next()? {
            let id: String = row.get(0)?;
            if row.get::<_, Option<bool>>(1)?.unwrap_or(false) {
                found.ids.push(id.clone());
            }
            found.last = Some(id);
        }
        return Ok(found);
    };
    let mut query = db.prepare_cached(&format!("SELECT id FROM instances p WHERE id = ?1 AND {can_be_pruned}"))?;
    let found =
        ids.iter().map(|id| query.query_row(params![id, before, keep, ended_before], |row| row.get(0)).optional());
    let mut ids: Vec<String> = found.filter_map(Result::transpose).collect::<rusqlite::Result<_>>()?;
    ids.sort_unstable();
    ids.dedup();
    Ok(PrunePage { ids, last: None })
}
