//! Reading an instance that is too large for a share of a trip: what it holds is listed with sizes first, and read in parts then.
//!
//! The parts are not of one moment. That does no harm: events of an execution never change, rows that come in later are found by the
//! cursor of the first look, and only the owner, for whom this is read, takes rows out. A deletion in between shows as a gap.

use outlast_core::{HistoryEvent, InboxSeq, Incoming, InstanceId, InstanceState, Message, decode};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::failure::{Failure, corrupt};
use super::pool::Pool;
use super::rows::{event_columns, event_of};
use super::turn_arrays::number_of;
use crate::{Error, InboxCursor};

/// Bytes of one part, but for its last row: a quarter of what one trip may read, and read well within the time of a statement.
const PART_BYTES_MAX: i64 = 16 << 20;

/// The numbers of the first and the last row of each part.
fn parts(sizes: &[(i64, i64)]) -> Vec<(i64, i64)> {
    let mut parts: Vec<(i64, i64)> = Vec::new();
    let mut bytes = PART_BYTES_MAX;
    for (number, size) in sizes {
        match parts.last_mut().filter(|_| bytes < PART_BYTES_MAX) {
            Some((_, last)) => *last = *number,
            None => {
                parts.push((*number, *number));
                bytes = 0;
            }
        }
        bytes += size;
    }
    parts
}

/// The current history of an instance whose row is `state`.
pub(super) async fn read_history(
    pool: &Pool,
    id: &InstanceId,
    state: &InstanceState,
) -> Result<Vec<HistoryEvent>, Error> {
    let sizes = "SELECT event_id::int8, length(data)::int8 FROM history \
                 WHERE instance = $1 AND execution = $2 AND event_id <= $3 ORDER BY event_id";
    let sql = concat!(
        "SELECT ",
        event_columns!(),
        " FROM history WHERE instance = $1 AND execution = $2 AND event_id BETWEEN $3 AND $4 ORDER BY event_id"
    );
    let (execution, last) = (number_of(state.execution.0), number_of(state.last_event_id.0));
    let name = id.as_str().to_owned();
    let sizes = pool.run(|db| {
        Box::pin(async move {
            let query = sqlx::query_as(sizes).bind(name).bind(execution).bind(last);
            Ok(query.fetch_all(&mut **db).await?)
        })
    });
    let mut history = Vec::new();
    let sizes: Vec<(i64, i64)> = sizes.await?;
    for (first, last) in parts(&sizes) {
        let id = id.clone();
        let part = pool.run(|db| {
            Box::pin(async move {
                let query = sqlx::query(sql).bind(id.as_str()).bind(execution).bind(first).bind(last);
                let rows = query.fetch_all(&mut **db).await?;
                rows.iter().map(|row| event_of(&id, row)).collect::<Result<Vec<_>, _>>()
            })
        });
        history.extend(part.await?);
    }
    if history.len() as u64 != state.last_event_id.0 {
        return Err(Error::unavailable(format!("instance {id} was deleted while it was read")));
    }
    Ok(history)
}

/// Rows of an inbox that may not have been seen yet.
pub(super) async fn read_inbox(pool: &Pool, id: &InstanceId, after: InboxCursor) -> Result<Vec<Incoming>, Error> {
    let sizes = "SELECT seq, length(data)::int8 FROM inbox \
                 WHERE instance = $1 AND written_by >= $2::text::xid8 ORDER BY seq";
    let sql = "SELECT seq, data FROM inbox WHERE instance = $1 AND written_by >= $2::text::xid8 \
               AND seq BETWEEN $3 AND $4 ORDER BY seq";
    let (name, since) = (id.as_str().to_owned(), after.transaction.to_string());
    let asked = (name.clone(), since.clone());
    let sizes = pool.run(|db| {
        Box::pin(async move { Ok(sqlx::query_as(sizes).bind(asked.0).bind(asked.1).fetch_all(&mut **db).await?) })
    });
    let mut inbox = Vec::new();
    let sizes: Vec<(i64, i64)> = sizes.await?;
    for (first, last) in parts(&sizes) {
        let (id, name, since) = (id.clone(), name.clone(), since.clone());
        let message = move |row: &PgRow| -> Result<Incoming, Failure> {
            let (seq, data): (i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            let message: Message = decode(&data).map_err(|error| corrupt(&id, format!("inbox row {seq}: {error}")))?;
            Ok(Incoming { seq: Some(InboxSeq(seq)), message })
        };
        let part = pool.run(|db| {
            Box::pin(async move {
                let query = sqlx::query(sql).bind(name).bind(since).bind(first).bind(last);
                query.fetch_all(&mut **db).await?.iter().map(message).collect::<Result<Vec<_>, _>>()
            })
        });
        inbox.extend(part.await?);
    }
    Ok(inbox)
}

#[cfg(test)]
mod tests {
    use super::{PART_BYTES_MAX, parts};

    #[test]
    fn parts_follow_each_other_and_none_is_larger_than_one_row_beyond_the_limit() {
        assert!(parts(&[]).is_empty());
        assert_eq!(parts(&[(3, 1), (5, 1), (9, 1)]), [(3, 9)]);
        let half = PART_BYTES_MAX / 2;
        assert_eq!(parts(&[(1, half), (2, half), (3, 1), (4, PART_BYTES_MAX * 3), (7, 1)]), [(1, 2), (3, 4), (7, 7)]);
    }
}
