//! Rows of the tables as values of core.

use outlast_core::{
    EventId, ExecutionId, HistoryEvent, InstanceId, InstanceState, InstanceStatus, MessageId, Millis, decode,
};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::escaped_text::given;
use super::failure::{Failure, corrupt};

/// Columns of an instance in the order of `state_of`.
macro_rules! state_columns {
    () => {
        "orchestration, version, status, paused, execution, last_event_id, history_bytes, wake_at, pending, waits, stalled, \
         custom_status, custom_status_version, output, completed"
    };
}
pub(super) use state_columns;

/// How many columns those are.
pub(super) const STATE_COLUMNS: usize = 15;

/// Numbers are unsigned in core and signed in Postgres; both fit.
pub(super) fn unsigned(row: &PgRow, index: usize) -> Result<u64, sqlx::Error> {
    row.try_get::<i64, _>(index).map(i64::cast_unsigned)
}

pub(super) fn optional_millis(row: &PgRow, index: usize) -> Result<Option<Millis>, sqlx::Error> {
    Ok(row.try_get::<Option<i64>, _>(index)?.map(|ms| Millis(ms.cast_unsigned())))
}

pub(super) fn state_of(row: &PgRow) -> Result<InstanceState, sqlx::Error> {
    let status: String = row.try_get(2)?;
    let unknown = || sqlx::Error::Decode(format!("unknown status {status:?}").into());
    Ok(InstanceState {
        orchestration: row.try_get(0)?,
        version: row.try_get(1)?,
        status: InstanceStatus::parse(&status).ok_or_else(unknown)?,
        paused: row.try_get(3)?,
        execution: ExecutionId(unsigned(row, 4)?),
        last_event_id: EventId(unsigned(row, 5)?),
        history_bytes: unsigned(row, 6)?,
        wake_at: optional_millis(row, 7)?,
        pending: row.try_get::<i32, _>(8)?.cast_unsigned(),
        waits: row.try_get(9)?,
        stalled: row.try_get::<i32, _>(10)?.cast_unsigned(),
        custom_status: row.try_get::<Option<String>, _>(11)?.map(given),
        custom_status_version: unsigned(row, 12)?,
        output: row.try_get::<Option<String>, _>(13)?.map(given),
        completed_at: optional_millis(row, 14)?,
    })
}

/// Columns of an event in the order of `event_of`.
macro_rules! event_columns {
    () => {
        "event_id, source_event_id, message_id, at, data"
    };
}
pub(super) use event_columns;

/// An event's columns, in that order.
pub(super) type EventColumns = (i32, Option<i32>, Option<String>, i64, Vec<u8>);

pub(super) fn event_of(instance: &InstanceId, row: &PgRow) -> Result<HistoryEvent, Failure> {
    let columns = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
    stored_event(instance, columns)
}

pub(super) fn stored_event(
    instance: &InstanceId,
    (event, source, message, at, data): EventColumns,
) -> Result<HistoryEvent, Failure> {
    let number = |id: i32| EventId(u64::from(id.cast_unsigned()));
    let event_id = number(event);
    let kind = decode(&data).map_err(|error| corrupt(instance, format!("event {event_id}: {error}")))?;
    let (source_event_id, message_id) = (source.map(number), message.map(MessageId::from));
    Ok(HistoryEvent { event_id, source_event_id, message_id, at: Millis(at.cast_unsigned()), kind })
}
