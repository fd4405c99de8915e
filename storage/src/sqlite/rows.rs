//! Rows of the tables as values of core.

use outlast_core::{
    EventId, ExecutionId, HistoryEvent, InboxSeq, Incoming, InstanceId, InstanceState, InstanceStatus, Message,
    MessageId, Millis, decode,
};
use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};

use super::failure::sql_error;
use crate::{Error, InboxCursor};

/// Columns of an instance in the order of `state_of`.
pub(super) const STATE: &str = "orchestration, version, status, paused, execution, last_event_id, history_bytes, wake_at, \
     pending, waits, stalled, custom_status, custom_status_version, output, completed";

/// Numbers are unsigned in core and signed in SQLite; both fit.
pub(super) fn unsigned(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(index).map(i64::cast_unsigned)
}

pub(super) fn optional_millis(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Millis>> {
    Ok(row.get::<_, Option<i64>>(index)?.map(|ms| Millis(ms.cast_unsigned())))
}

pub(super) fn state_of(row: &Row<'_>) -> rusqlite::Result<InstanceState> {
    let status: String = row.get(2)?;
    let unknown = || rusqlite::Error::InvalidColumnType(2, status.clone(), Type::Text);
    Ok(InstanceState {
        orchestration: row.get(0)?,
        version: row.get(1)?,
        status: InstanceStatus::parse(&status).ok_or_else(unknown)?,
        paused: row.get(3)?,
        execution: ExecutionId(unsigned(row, 4)?),
        last_event_id: EventId(unsigned(row, 5)?),
        history_bytes: unsigned(row, 6)?,
        wake_at: optional_millis(row, 7)?,
        pending: row.get(8)?,
        waits: row.get(9)?,
        stalled: row.get(10)?,
        custom_status: row.get(11)?,
        custom_status_version: unsigned(row, 12)?,
        output: row.get(13)?,
        completed_at: optional_millis(row, 14)?,
    })
}

/// One execution's events, in order and without gap.
pub(super) fn read_history(
    db: &Connection,
    instance: &InstanceId,
    execution: ExecutionId,
) -> Result<Vec<HistoryEvent>, Error> {
    read_events(db, instance, execution, EventId(1), EventId(u64::MAX >> 1))
}

/// One event; `None` when it does not exist.
pub(super) fn read_event(
    db: &Connection,
    instance: &InstanceId,
    execution: ExecutionId,
    event: EventId,
) -> Result<Option<HistoryEvent>, Error> {
    Ok(read_events(db, instance, execution, event, event)?.pop())
}

fn read_events(
    db: &Connection,
    instance: &InstanceId,
    execution: ExecutionId,
    first: EventId,
    last: EventId,
) -> Result<Vec<HistoryEvent>, Error> {
    let sql = "SELECT event_id, source_event_id, message_id, at, data FROM history \
               WHERE instance = ?1 AND execution = ?2 AND event_id BETWEEN ?3 AND ?4 ORDER BY event_id";
    let mut query = db.prepare_cached(sql).map_err(sql_error)?;
    let range = (execution.0.cast_signed(), first.0.cast_signed(), last.0.cast_signed());
    let mut rows = query.query(params![instance.as_str(), range.0, range.1, range.2]).map_err(sql_error)?;
    let mut events = Vec::new();
    while let Some(row) = rows.next().map_err(sql_error)? {
        let (event, data) = event_of(row).map_err(sql_error)?;
        let kind = decode(&data).map_err(|error| corrupt(instance, format!("event {}: {error}", event.0)))?;
        let (event_id, source_event_id, message_id, at) = event;
        events.push(HistoryEvent { event_id, source_event_id, message_id, at, kind });
    }
    Ok(events)
}

type EventColumns = (EventId, Option<EventId>, Option<MessageId>, Millis);

fn event_of(row: &Row<'_>) -> rusqlite::Result<(EventColumns, Vec<u8>)> {
    let source = row.get::<_, Option<i64>>(1)?.map(|id| EventId(id.cast_unsigned()));
    let message = row.get::<_, Option<String>>(2)?.map(MessageId::from);
    Ok(((EventId(unsigned(row, 0)?), source, message, Millis(unsigned(row, 3)?)), row.get(4)?))
}

/// Inbox rows after `after`, in order. A row that cannot be read is reported and left for people.
pub(super) fn read_inbox(
    db: &Connection,
    instance: &InstanceId,
    mut cursor: InboxCursor,
) -> Result<(Vec<Incoming>, InboxCursor), Error> {
    let sql = "SELECT seq, data FROM inbox WHERE instance = ?1 AND seq > ?2 ORDER BY seq";
    let mut query = db.prepare_cached(sql).map_err(sql_error)?;
    let mut rows = query.query(params![instance.as_str(), cursor.seq.0]).map_err(sql_error)?;
    let mut messages = Vec::new();
    while let Some(row) = rows.next().map_err(sql_error)? {
        let seq: i64 = row.get(0).map_err(sql_error)?;
        let data: Vec<u8> = row.get(1).map_err(sql_error)?;
        let message: Message = decode(&data).map_err(|error| corrupt(instance, format!("inbox row {seq}: {error}")))?;
        cursor.seq = InboxSeq(seq);
        messages.push(Incoming { seq: Some(cursor.seq), message });
    }
    Ok((messages, cursor))
}

pub(super) fn corrupt(instance: &InstanceId, reason: String) -> Error {
    Error::Corrupt { instance: instance.clone(), reason }
}
