//! Reading instances, many in one trip: to hydrate actors, to see new inbox rows, and to see where they stand.

use std::collections::HashMap;

use outlast_core::{
    HistoryEvent, InboxSeq, Incoming, InstanceId, InstanceState, LOAD_BYTES_MAX, Message, ShardId, decode,
};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::failure::{Failure, corrupt};
use super::large_instances;
use super::pool::Pool;
use super::rows::{STATE_COLUMNS, state_columns, state_of, stored_event, unsigned};
use super::trips::Batcher;
use crate::{Error, InboxCursor, Loaded};

/// Trips that are under way at once: a long history must not hold up the others, and each takes a connection of the pool.
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

/// Rows of instances. One whose texts are larger than its share of the trip is read by itself.
async fn read_states(pool: Pool, ids: Vec<InstanceId>) -> Result<Vec<One<Option<InstanceState>>>, Error> {
    let sql = concat!(
        "SELECT ",
        state_columns!(),
        ", id FROM instances WHERE id = ANY ($1) AND $2 >= coalesce(octet_length(output), 0) + coalesce(octet_length(custom_status), 0)"
    );
    let (asked, share) = (texts(&ids), share_of(ids.len()));
    let rows = pool
        .run(|db| Box::pin(async move { Ok(sqlx::query(sql).bind(asked).bind(share).fetch_all(&mut **db).await?) }));
    let mut found = HashMap::new();
    for row in rows.await? {
        let id: String = row.try_get(STATE_COLUMNS).map_err(Failure::Sql)?;
        found.insert(id, state_of(&row).map_err(|error| Failure::Sql(error).into()));
    }
    // Few: those that do not exist, and the large ones.
    let missing: Vec<InstanceId> = ids.iter().filter(|id| !found.contains_key(id.as_str())).cloned().collect();
    for id in missing {
        if let Some(state) = one_state(&pool, &id).await? {
            found.insert(id.as_str().to_owned(), Ok(state));
        }
    }
    Ok(in_order(&ids, &found))
}

/// How many bytes of a trip are one instance's.
fn share_of(count: usize) -> i64 {
    i64::try_from(LOAD_BYTES_MAX / count.max(1)).unwrap_or(i64::MAX)
}

/// Row, history of the current execution and inbox of each, as of one moment. One that is larger than its share of the trip is
/// read by itself, in parts, and fails by itself.
async fn load(pool: Pool, ids: Vec<InstanceId>) -> Result<Vec<One<Option<Loaded>>>, Error> {
    let sql = concat!(
        "SELECT ",
        state_columns!(),
        ", id, shard, pg_snapshot_xmin(pg_current_snapshot())::text::int8, s.bytes <= $2, h.*, x.* FROM instances i \
         LEFT JOIN LATERAL (SELECT i.history_bytes + coalesce(sum(length(data)), 0)::int8 AS bytes \
         FROM inbox WHERE instance = i.id) s ON true \
         LEFT JOIN LATERAL (SELECT array_agg(event_id ORDER BY event_id), array_agg(source_event_id ORDER BY event_id), \
         array_agg(message_id ORDER BY event_id), array_agg(at ORDER BY event_id), array_agg(data ORDER BY event_id) \
         FROM history WHERE s.bytes <= $2 AND i.last_event_id > 0 AND instance = i.id AND execution = i.execution) h ON true \
         LEFT JOIN LATERAL (SELECT array_agg(seq ORDER BY seq), array_agg(data ORDER BY seq) \
         FROM inbox WHERE s.bytes <= $2 AND instance = i.id) x ON true WHERE id = ANY ($1)"
    );
    let (asked, share) = (texts(&ids), share_of(ids.len()));
    let rows = pool
        .run(|db| Box::pin(async move { Ok(sqlx::query(sql).bind(asked).bind(share).fetch_all(&mut **db).await?) }));
    let mut found = HashMap::new();
    for row in rows.await? {
        let id: String = row.try_get(STATE_COLUMNS).map_err(Failure::Sql)?;
        let instance = InstanceId::new(&id);
        let is_whole: bool = row.try_get(STATE_COLUMNS + 3).map_err(Failure::Sql)?;
        let loaded = loaded_of(&instance, &row).map_err(Error::from);
        let loaded = match loaded {
            Ok(loaded) if !is_whole => load_in_parts(&pool, &instance, loaded).await,
            loaded => loaded,
        };
        found.insert(id, loaded);
    }
    Ok(in_order(&ids, &found))
}

async fn load_in_parts(pool: &Pool, id: &InstanceId, row: Loaded) -> One<Loaded> {
    let history = match row.state.last_event_id.0 {
        0 => Vec::new(),
        _ => large_instances::read_history(pool, id, &row.state).await?,
    };
    // From the beginning: what comes in while this is read may be read twice, and is passed over by its number.
    let inbox = large_instances::read_inbox(pool, id, InboxCursor::default()).await?;
    Ok(Loaded { history, inbox, ..row })
}

fn loaded_of(id: &InstanceId, row: &PgRow) -> Result<Loaded, Failure> {
    let history = history_of(id, row, STATE_COLUMNS + 4)?;
    let inbox = inbox_of(id, row, STATE_COLUMNS + 9)?;
    let shard = ShardId(row.try_get::<i16, _>(STATE_COLUMNS + 1)?.cast_unsigned());
    let cursor = InboxCursor { transaction: unsigned(row, STATE_COLUMNS + 2)?, ..InboxCursor::default() };
    Ok(Loaded { shard, state: state_of(row)?, history, inbox, cursor, mailed: None })
}

async fn one_state(pool: &Pool, id: &InstanceId) -> Result<Option<InstanceState>, Error> {
    let sql = concat!("SELECT ", state_columns!(), " FROM instances WHERE id = $1");
    let id = id.as_str().to_owned();
    let row = pool.run(|db| Box::pin(async move { Ok(sqlx::query(sql).bind(id).fetch_optional(&mut **db).await?) }));
    Ok(row.await?.as_ref().map(state_of).transpose().map_err(Failure::Sql)?)
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

/// Inbox rows of each that may not have been seen yet. Rows that were not visible when the cursor was made are of transactions that
/// were under way then or began since, and so is what is given twice: the actor knows its rows by their numbers.
async fn read_inboxes(pool: Pool, asked: Vec<(InstanceId, InboxCursor)>) -> Result<Vec<One<Inbox>>, Error> {
    let sql = "SELECT a.n, pg_snapshot_xmin(pg_current_snapshot())::text::int8, s.bytes <= $3, x.* \
               FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS a(instance, since, n) \
               LEFT JOIN LATERAL (SELECT coalesce(sum(length(data)), 0)::int8 AS bytes FROM inbox \
               WHERE instance = a.instance AND written_by >= a.since::xid8) s ON true \
               LEFT JOIN LATERAL (SELECT array_agg(seq ORDER BY seq), array_agg(data ORDER BY seq) FROM inbox \
               WHERE s.bytes <= $3 AND instance = a.instance AND written_by >= a.since::xid8) x ON true ORDER BY a.n";
    let ids: Vec<InstanceId> = asked.iter().map(|(id, _)| id.clone()).collect();
    let (texts, share) = (texts(&ids), share_of(ids.len()));
    let since: Vec<String> = asked.iter().map(|(_, cursor)| cursor.transaction.to_string()).collect();
    let rows = pool.run(|db| {
        Box::pin(async move {
            let query = sqlx::query(sql).bind(texts).bind(since).bind(share);
            Ok(query.fetch_all(&mut **db).await?)
        })
    });
    let rows = rows.await?;
    let mut read = Vec::with_capacity(asked.len());
    for ((id, after), row) in asked.iter().zip(&rows) {
        let transaction = unsigned(row, 1).map_err(Failure::Sql)?;
        let is_whole: bool = row.try_get(2).map_err(Failure::Sql)?;
        let inbox = match is_whole {
            true => inbox_of(id, row, 3).map_err(Error::from),
            false => large_instances::read_inbox(&pool, id, *after).await,
        };
        read.push(inbox.map(|rows| (rows, InboxCursor { transaction, ..InboxCursor::default() })));
    }
    Ok(read)
}
