//! Committing turns and reading what actors are hydrated from.

use std::time::Duration;

use async_trait::async_trait;
use outlast_core::{InboxSeq, Incoming, InstanceId, Millis, ShardId};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::PostgresStore;
use super::escaped_text::may_exist;
use super::failure::Failure;
use super::rows::unsigned;
use super::turn_arrays::small;
use crate::{Arrivals, CommitReply, Due, Error, FencedTurn, InboxCursor, Loaded, TurnStore, Wake};

#[async_trait]
impl TurnStore for PostgresStore {
    async fn commit(&self, group: Vec<FencedTurn>) -> Result<CommitReply, Error> {
        self.commit_group(&group).await
    }

    async fn load(&self, instance: &InstanceId) -> Result<Option<Loaded>, Error> {
        if !may_exist(instance) {
            return Ok(None);
        }
        self.reads.loads.call(instance.clone(), 0).await?
    }

    async fn inbox(&self, instance: &InstanceId, after: InboxCursor) -> Result<(Vec<Incoming>, InboxCursor), Error> {
        self.reads.inboxes.call((instance.clone(), after), 0).await?
    }

    async fn due(&self, shards: &[ShardId], until: Millis, limit: usize) -> Result<Vec<Due>, Error> {
        let sql = "SELECT wake_at, shard, id FROM instances WHERE wake_at IS NOT NULL AND status = 'Running' \
                   AND wake_at <= $1 AND shard = ANY ($2) ORDER BY wake_at LIMIT $3";
        let (shards, until, limit) = (numbers(shards), until.0.cast_signed(), count(limit));
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let rows = sqlx::query(sql).bind(until).bind(shards).bind(limit).fetch_all(&mut **db).await?;
                let due = |row: &PgRow| {
                    let Wake { shard, instance } = wake_of(row, 1)?;
                    Ok(Due { at: Millis(unsigned(row, 0)?), shard, instance })
                };
                rows.iter().map(due).collect()
            })
        });
        read.await
    }

    async fn next_due(&self, shards: &[ShardId], after: Millis) -> Result<Option<Millis>, Error> {
        let sql = "SELECT wake_at FROM instances WHERE wake_at IS NOT NULL AND status = 'Running' AND wake_at > $1 \
                   AND shard = ANY ($2) ORDER BY wake_at LIMIT 1";
        let (shards, after) = (numbers(shards), after.0.cast_signed());
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let at: Option<i64> =
                    sqlx::query_scalar(sql).bind(after).bind(shards).fetch_optional(&mut **db).await?;
                Ok(at.map(|at| Millis(at.cast_unsigned())))
            })
        });
        read.await
    }

    async fn arrivals(&self, shards: &[ShardId], after: InboxCursor, limit: usize) -> Result<Arrivals, Error> {
        let sql = "SELECT shard, instance, written_by::text::int8, seq, pg_snapshot_xmin(pg_current_snapshot())::text::int8 \
                   FROM inbox WHERE shard = ANY ($1) AND (written_by, seq) > ($2::text::xid8, $3) \
                   ORDER BY written_by, seq LIMIT $4";
        let shards = numbers(shards);
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let query = sqlx::query(sql).bind(shards).bind(after.transaction.to_string()).bind(after.seq.0);
                let rows = query.bind(count(limit)).fetch_all(&mut **db).await?;
                arrivals_of(&rows, after, limit)
            })
        });
        read.await
    }

    async fn pending(&self, shards: &[ShardId], after: Option<&InstanceId>, limit: usize) -> Result<Vec<Wake>, Error> {
        let sql = "SELECT shard, id FROM instances WHERE pending > 0 AND status = 'Running' AND shard = ANY ($1) \
                   AND id > $2 ORDER BY id LIMIT $3";
        let after = after.map_or(String::new(), |id| id.as_str().to_owned());
        let shards = numbers(shards);
        let read = self.pools.general.run(|db| {
            Box::pin(async move {
                let rows = sqlx::query(sql).bind(shards).bind(after).bind(count(limit)).fetch_all(&mut **db).await?;
                rows.iter().map(|row| wake_of(row, 0)).collect()
            })
        });
        read.await
    }

    /// Nudges bring news at once; this look is for those that were lost.
    async fn written_elsewhere(&self, seen: u64, timeout: Duration) -> u64 {
        tokio::time::sleep(timeout).await;
        seen.wrapping_add(1)
    }

    fn now(&self) -> Millis {
        self.clock.now()
    }

    async fn sleep_until(&self, at: Millis) {
        self.clock.sleep_until(at).await;
    }
}

pub(super) fn numbers(shards: &[ShardId]) -> Vec<i16> {
    shards.iter().map(|shard| small(*shard)).collect()
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A shard and an instance in two columns.
fn wake_of(row: &PgRow, first: usize) -> Result<Wake, Failure> {
    let shard = ShardId(row.try_get::<i16, _>(first)?.cast_unsigned());
    Ok(Wake { shard, instance: InstanceId::from(row.try_get::<String, _>(first + 1)?) })
}

/// Within one look the next page begins after the last row; the next look begins with the oldest transaction that may still
/// have been under way when this one began. A later page's horizon would pass over what became visible behind it meanwhile.
fn arrivals_of(rows: &[PgRow], after: InboxCursor, limit: usize) -> Result<Arrivals, Failure> {
    let mut arrivals = Arrivals { next: after, more: rows.len() >= limit, ..Arrivals::default() };
    let horizon = match rows.last() {
        Some(last) if after.horizon == 0 => unsigned(last, 4)?,
        _ => after.horizon,
    };
    for row in rows {
        let wake = wake_of(row, 0)?;
        if arrivals.receivers.last() != Some(&wake) {
            arrivals.receivers.push(wake);
        }
    }
    match rows.last().filter(|_| arrivals.more) {
        Some(last) => {
            let seq = InboxSeq(last.try_get(3)?);
            arrivals.next = InboxCursor { transaction: unsigned(last, 2)?, seq, horizon };
        }
        // A look that saw nothing has learned nothing: the next one begins where it did.
        None if horizon == 0 => {}
        None => arrivals.next = InboxCursor { transaction: horizon, ..InboxCursor::default() },
    }
    Ok(arrivals)
}
