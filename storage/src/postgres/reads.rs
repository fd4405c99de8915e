//! Reading instances, many in one trip: to hydrate actors, to see new inbox rows, and to see where they stand.

use std::collections::HashMap;

use outlast_core::{HistoryEvent, InboxSeq, Incoming, InstanceId, InstanceState, Message, ShardId, decode};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::batch::Batcher;
use super::connect::{Failure, Pool, corrupt};
use super::rows::{STATE_COLUMNS, state_columns, state_of, stored_event, unsigned};
use crate::{Error, InboxCursor, Loaded};

/// Trips that are under way at once: a long history must not hold up the others.
const LOADS: usize = 2;
/// Short reads share more of a trip when there is one at a time.
const LOOKS: usize = 1;

/// What one instance gave; what is wrong with it is its own failure.
type One<T> = Result<T, Error>;

/// Rows of an inbox, and from where to read on.
type Inbox = (Vec<Incoming>, InboxCursor);

/// Batched reads.
pub(super) struct Reads {
    pub(super) loads: Batcher<InstanceId, One<Option<Loaded>>>,
    pub(super) inboxes: Batcher<(InstanceId, InboxCursor), One<Inbox>>,
    pub(super) states: Batcher<InstanceId, One<Option<InstanceState>>>,
}

impl Reads {
    pub(super) fn start(pool: &Pool) -> Self {
        let (loads, inboxes, states) = (pool.clone(), pool.clone(), pool.clone());
        Self {
            loads: Batcher::start(LOADS, move |ids| load(loads.clone(), ids)),
            inboxes: Batcher::start(LOADS, move |asked| read_inboxes(inboxes.clone(), asked)),
            states: Batcher::start(LOOKS, move |ids| read_states(states.clone(), ids)),
        }
    }
}

fn texts(ids: &[InstanceId]) -> Vec<String> {
    ids.iter().map(|id| id.as_str().to_owned()).collect()
}

/// Puts what was found in the order in which it was asked for.
fn in_order<T: Clone>(ids: &[InstanceId], found: &HashMap<String, One<T>>) -> Vec<One<Option<T>>> {
    ids.iter().map(|id| found.get(id.as_str()).cloned().transpose()).collect()
}

async fn read_states(pool: Pool, ids: Vec<InstanceId>) -> Result<Vec<One<Option<InstanceState>>>, Error> {
    let sql = concat!("SELECT ", state_columns!(), ", id FROM instances WHERE id = ANY ($1)");
    let asked = texts(&ids);
    let rows = pool.run(|db| Box::pin(async move { Ok(sqlx::query(sql).bind(asked).fetch_all(&mut **db).await?) }));
    let mut found = HashMap::new();
    for row in rows.await? {
        let id: String = row.try_get(STATE_COLUMNS).map_err(Failure::Sql)?;
        found.insert(id, state_of(&row).map_err(|error| Failure::Sql(error).into()));
    }
    Ok(in_order(&ids, &found))
}

/// Row, history of the current execution and inbox of each, as of one moment.
async fn load(pool: Pool, ids: Vec<InstanceId>) -> Result<Vec<One<Option<Loaded>>>, Error> {
    let sql = concat!(
        "SELECT ",
        state_columns!(),
        ", id, shard, pg_snapshot_xmin(pg_current_snapshot())::text::int8, h.*, x.* FROM instances i \
         LEFT JOIN LATERAL (SELECT array_agg(event_id ORDER BY event_id), array_agg(source_event_id ORDER BY event_id), \
         array_agg(message_id ORDER BY event_id), array_agg(at ORDER BY event_id), array_agg(data ORDER BY event_id) \
         FROM history WHERE i.last_event_id > 0 AND instance = i.id AND execution = i.execution) h ON true \
         LEFT JOIN LATERAL (SELECT array_agg(seq ORDER BY seq), array_agg(data ORDER BY seq) \
         FROM inbox WHERE instance = i.id) x ON true WHERE id = ANY ($1)"
    );
    let asked = texts(&ids);
    let rows = pool.run(|db| Box::pin(async move { Ok(sqlx::query(sql).bind(asked).fetch_all(&mut **db).await?) }));
    let mut found = HashMap::new();
    for row in rows.await? {
        let id: String = row.try_get(STATE_COLUMNS).map_err(Failure::Sql)?;
        let loaded = loaded_of(&InstanceId::new(&id), &row).map_err(Error::from);
        found.insert(id, loaded);
    }
    Ok(in_order(&ids, &found))
}

fn loaded_of(id: &InstanceId, row: &PgRow) -> Result<Loaded, Failure> {
    let history = history_of(id, row, STATE_COLUMNS + 3)?;
    let inbox = inbox_of(id, row, STATE_COLUMNS + 8)?;
    let shard = ShardId(row.try_get::<i16, _>(STATE_COLUMNS + 1)?.cast_unsigned());
    let cursor = InboxCursor { transaction: unsigned(row, STATE_COLUMNS + 2)?, ..InboxCursor::default() };
    Ok(Loaded { shard, state: state_of(row)?, history, inbox, cursor, mailed: None })
}

/// A history in five columns of arrays from `first` on; null when there is none.
fn history_of(id: &InstanceId, row: &PgRow, first: usize) -> Result<Vec<HistoryEvent>, Failure> {
    let Some(events) = row.try_get::<Option<Vec<i32>>, _>(first)? else { return Ok(Vec::new()) };
    let sources: Vec<Option<i32>> = row.try_get(first + 1)?;
    let messages: Vec<Option<String>> = row.try_get(first + 2)?;
    let times: Vec<i64> = row.try_get(first + 3)?;
    let datas: Vec<Vec<u8>> = row.try_get(first + 4)?;
    let mut history = Vec::with_capacity(events.len());
    for ((((event, source), message), at), data) in events.into_iter().zip(sources).zip(messages).zip(times).zip(datas)
    {
        history.push(stored_event(id, (event, source, message, at, data))?);
    }
    Ok(history)
}

/// An inbox in two columns of arrays from `first` on; null when there is none.
fn inbox_of(id: &InstanceId, row: &PgRow, first: usize) -> Result<Vec<Incoming>, Failure> {
    let Some(numbers) = row.try_get::<Option<Vec<i64>>, _>(first)? else { return Ok(Vec::new()) };
    let datas: Vec<Vec<u8>> = row.try_get(first + 1)?;
    let message = |(seq, data): (i64, Vec<u8>)| {
        let message: Message = decode(&data).map_err(|error| corrupt(id, format!("inbox row {seq}: {error}")))?;
        Ok(Incoming { seq: Some(InboxSeq(seq)), message })
    };
    numbers.into_iter().zip(datas).map(message).collect()
}

/// Inbox rows of each that may not have been seen yet.
async fn read_inboxes(pool: Pool, asked: Vec<(InstanceId, InboxCursor)>) -> Result<Vec<One<Inbox>>, Error> {
    let sql = "SELECT a.n, pg_snapshot_xmin(pg_current_snapshot())::text::int8, x.* \
               FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS a(instance, since, n) \
               LEFT JOIN LATERAL (SELECT array_agg(seq ORDER BY seq), array_agg(data ORDER BY seq) FROM inbox \
               WHERE instance = a.instance AND written_by >= a.since::xid8) x ON true ORDER BY a.n";
    let ids: Vec<InstanceId> = asked.iter().map(|(id, _)| id.clone()).collect();
    let texts = texts(&ids);
    let since: Vec<String> = asked.iter().map(|(_, cursor)| cursor.transaction.to_string()).collect();
    let rows = pool
        .run(|db| Box::pin(async move { Ok(sqlx::query(sql).bind(texts).bind(since).fetch_all(&mut **db).await?) }));
    let read = |(id, row): (&InstanceId, &PgRow)| {
        let cursor = InboxCursor { transaction: unsigned(row, 1).map_err(Failure::Sql)?, ..InboxCursor::default() };
        Ok((inbox_of(id, row, 2)?, cursor))
    };
    let rows = rows.await?;
    Ok(ids.iter().zip(&rows).map(read).collect())
}
