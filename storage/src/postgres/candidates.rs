//! Which instances a bulk operation is for.

use async_trait::async_trait;
use sqlx::AssertSqlSafe;

use super::PostgresStore;
use crate::Error;
use crate::bulk::{Bulk, Candidates, EndedRoot, PRUNE_PAGE, PrunePage};

#[async_trait]
impl Candidates for PostgresStore {
    /// Few: they take connections from those who load instances.
    const AT_ONCE: usize = 2;

    async fn ended_roots(&self, asked: &Bulk, after: Option<EndedRoot>, max: u32) -> Result<Vec<EndedRoot>, Error> {
        // Two plans: by the moment of the end, and by id.
        let among = if asked.ids.is_some() { "i.id = ANY ($5)" } else { "$5::text[] IS NULL" };
        let sql = format!(
            "SELECT i.completed, i.id FROM instances i WHERE i.completed IS NOT NULL AND i.parent IS NULL \
             AND i.completed < $1 AND (i.completed, i.id) > ($2, $3) AND {among} \
             AND NOT EXISTS (SELECT FROM instances c WHERE c.parent = i.id AND c.completed IS NULL) \
             ORDER BY i.completed, i.id LIMIT $4"
        );
        let (completed, id) = after.map_or((i64::MIN, String::new()), |root| (root.completed, root.id));
        let (before, ids) = (asked.completed_before.unwrap_or(i64::MAX), asked.ids.clone());
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let query = sqlx::query_as(AssertSqlSafe(sql))
                    .bind(before)
                    .bind(completed)
                    .bind(id)
                    .bind(i64::from(max))
                    .bind(ids);
                Ok(query.fetch_all(&mut **db).await?)
            })
        });
        let roots: Vec<(i64, String)> = read.await?;
        Ok(roots.into_iter().map(|(completed, id)| EndedRoot { completed, id }).collect())
    }

    async fn prunable(&self, asked: &Bulk, after: &str) -> Result<PrunePage, Error> {
        let page = match asked.ids {
            Some(_) => "SELECT id, execution, completed FROM instances WHERE id = ANY ($6) AND $1 = '' AND $5 > 0",
            None => {
                "SELECT id, execution, completed FROM instances WHERE id > $1 AND $6::text[] IS NULL ORDER BY id LIMIT $5"
            }
        };
        let sql = format!(
            "WITH page AS ({page}) SELECT (SELECT max(id) FROM page), ARRAY(SELECT p.id FROM page p \
             WHERE p.execution > 1 AND ($2::int8 IS NULL OR p.completed < $2) AND EXISTS (SELECT FROM history h \
             WHERE h.instance = p.id AND h.terminal AND h.execution <= p.execution - $3 AND h.at < $4) ORDER BY p.id)"
        );
        let (after, ids, before) = (after.to_owned(), asked.ids.clone(), asked.completed_before);
        let (keep, ended_before) = (asked.keep_last, asked.ended_before);
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let query = sqlx::query_as(AssertSqlSafe(sql)).bind(after).bind(before).bind(keep).bind(ended_before);
                Ok(query.bind(i64::from(PRUNE_PAGE)).bind(ids).fetch_one(&mut **db).await?)
            })
        });
        let (last, ids): (Option<String>, Vec<String>) = read.await?;
        Ok(PrunePage { ids, last })
    }
}
