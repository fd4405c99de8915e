//! A group of turns as the arrays that `commit_group` takes.

use std::collections::HashMap;

use outlast_core::{EventKind, InstanceStatus, KvChange, Message, MessageKind, ShardId, encode};
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::QueryAs;

use super::escaped_text::stored;
use crate::FencedTurn;

/// Declares a struct of columns that are bound in their order.
macro_rules! columns {
    ($name:ident { $($column:ident: $type:ty),* $(,)? }) => {
        #[derive(Default)]
        struct $name { $($column: Vec<$type>),* }

        impl $name {
            fn bind<O>(self, query: Query<O>) -> Query<O> {
                query$(.bind(self.$column))*
            }
        }
    };
}

type Query<O> = QueryAs<'static, Postgres, O, PgArguments>;

columns!(Fences { instance: String, shard: i16, epoch: i64, execution: i64, event: i64, leftover: bool });
columns!(States {
    orchestration: String,
    version: String,
    status: &'static str,
    paused: bool,
    execution: i64,
    event: i64,
    bytes: i64,
    wake: Option<i64>,
    pending: i32,
    waits: String,
    stalled: i32,
    custom: Option<String>,
    custom_version: i64,
    output: Option<String>,
    completed: Option<i64>,
    shard: i16,
});
columns!(Events {
    turn: i32,
    instance: String,
    epoch: i32,
    execution: i32,
    event: i32,
    terminal: bool,
    source: Option<i32>,
    message: Option<String>,
    at: i64,
    data: Vec<u8>,
});
columns!(Consumed { turn: i32, instance: String, seq: i64, digest: Option<Vec<u8>> });
columns!(Values { turn: i32, instance: String, op: i16, key: Option<String>, value: Option<String>, updated: Option<i64> });
columns!(Messages {
    turn: i32,
    kind: i16,
    from: String,
    from_shard: i16,
    to: String,
    to_shard: i16,
    id: String,
    queue: Option<String>,
    data: Vec<u8>,
    orchestration: Option<String>,
    parent: Option<String>,
    taken_id: Option<String>,
    taken_data: Option<Vec<u8>>,
});

columns!(Heartbeats { turn: i32, instance: String, activity: String });

/// Bytes of events and messages of one transaction, but for its last turn: far below the 1 GiB that Postgres takes in one
/// value, and written well within the time limit of a statement.
const BYTES_MAX: usize = 16 << 20;

/// Placeholders of `commit_group`, in the order of the structs above.
pub(super) const COMMIT: &str = "SELECT now, outcomes, wake_turn, wake_shard, wake_instance FROM commit_group(\
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, \
    $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41, $42, $43, $44, $45, $46, $47, $48, $49, $50, \
    $51, $52, $53, $54, $55, $56, $57, $58)";

/// What `commit_group` answers: the time, an outcome per turn, and by whom which instance in which shard is woken.
pub(super) type Answer = (i64, Vec<i16>, Option<Vec<i32>>, Option<Vec<i16>>, Option<Vec<String>>);

/// Bytes of one turn that a statement can carry. Postgres takes 1 GiB in one message.
const TURN_BYTES_MAX: usize = 768 << 20;

/// A group as a query.
pub(super) struct CommitQuery {
    pub(super) query: Query<Answer>,
    /// How much it carries.
    pub(super) bytes: usize,
}

/// The columns of a group.
#[derive(Default)]
struct Group {
    bytes: usize,
    fences: Fences,
    states: States,
    events: Events,
    consumed: Consumed,
    values: Values,
    messages: Messages,
    heartbeats: Heartbeats,
}

/// The query that commits the first of these turns, as many as one transaction should carry; for a first one that no statement can
/// carry, how large it is.
pub(super) fn commit_query(turns: &[FencedTurn], shards: u16) -> Result<CommitQuery, usize> {
    let mut group = Group::default();
    for (index, turn) in turns.iter().enumerate() {
        let before = group.bytes;
        group.add(number_of(index as u64 + 1), turn, shards);
        let added = group.bytes - before;
        match (added > TURN_BYTES_MAX, index) {
            (true, 0) => return Err(added),
            // Its neighbours go without it; it is the first of what is left.
            (true, _) => return commit_query(&turns[..index], shards),
            (false, _) if group.bytes >= BYTES_MAX => break,
            (false, _) => {}
        }
    }
    let bytes = group.bytes;
    let query = sqlx::query_as::<_, Answer>(COMMIT);
    let query = group.states.bind(group.fences.bind(query));
    let query = group.values.bind(group.consumed.bind(group.events.bind(query)));
    Ok(CommitQuery { query: group.heartbeats.bind(group.messages.bind(query)), bytes })
}

pub(super) fn small(shard: ShardId) -> i16 {
    shard.0.cast_signed()
}

impl Group {
    fn add(&mut self, number: i32, fenced: &FencedTurn, shards: u16) {
        let turn = &fenced.turn;
        let instance = fenced.instance.as_str();
        let shard = fenced.move_to.unwrap_or(fenced.shard);
        let fences = &mut self.fences;
        fences.instance.push(instance.to_owned());
        fences.shard.push(small(fenced.shard));
        fences.epoch.push(fenced.epoch.0.cast_signed());
        fences.execution.push(turn.expected.execution.0.cast_signed());
        fences.event.push(turn.expected.last_event_id.0.cast_signed());
        fences.leftover.push(turn.events.is_empty() && turn.outbound.is_empty() && turn.held.is_empty());
        self.add_state(fenced, shard);
        self.add_events(number, fenced);
        for seq in &turn.consumed {
            self.consumed.turn.push(number);
            self.consumed.instance.push(instance.to_owned());
            self.consumed.seq.push(seq.0);
            let mailed = fenced.mailed.filter(|mailed| mailed.seq == *seq);
            self.consumed.digest.push(mailed.map(|mailed| mailed.digest.to_vec()));
        }
        self.add_values(number, instance, &turn.kv);
        for activity in &turn.heartbeats {
            self.heartbeats.turn.push(number);
            self.heartbeats.instance.push(instance.to_owned());
            self.heartbeats.activity.push(activity.clone());
        }
        let first = self.messages.data.len();
        for message in &turn.held {
            self.messages.add(&Outgoing {
                turn: number,
                kind: 0,
                from: instance,
                from_shard: shard,
                to: instance,
                to_shard: shard,
                message,
                taken: None,
            });
        }
        for outbound in &turn.outbound {
            let kind = if matches!(outbound.message.kind, MessageKind::Start(_)) { 2 } else { 1 };
            self.messages.add(&Outgoing {
                turn: number,
                kind,
                from: instance,
                from_shard: shard,
                to: outbound.to.as_str(),
                to_shard: ShardId::of(&outbound.to, shards),
                message: &outbound.message,
                taken: outbound.when_taken.as_ref(),
            });
        }
        self.bytes += self.messages.data[first..].iter().map(Vec::len).sum::<usize>();
        self.bytes += turn.state.output.as_deref().map_or(0, str::len);
        self.bytes += turn.state.custom_status.as_deref().map_or(0, str::len);
    }

    fn add_state(&mut self, fenced: &FencedTurn, shard: ShardId) {
        let (state, states) = (&fenced.turn.state, &mut self.states);
        states.orchestration.push(state.orchestration.clone());
        states.version.push(state.version.clone());
        states.status.push(state.status.as_str());
        states.paused.push(state.paused);
        states.execution.push(state.execution.0.cast_signed());
        states.event.push(state.last_event_id.0.cast_signed());
        states.bytes.push(state.history_bytes.cast_signed());
        states.wake.push(state.wake_at.map(|at| at.0.cast_signed()));
        states.pending.push(state.pending.cast_signed());
        states.waits.push(state.waits.clone());
        states.stalled.push(state.stalled.cast_signed());
        states.custom.push(state.custom_status.as_deref().map(stored));
        states.custom_version.push(state.custom_status_version.cast_signed());
        states.output.push(state.output.as_deref().map(stored));
        // Only the turn that ends an instance clears its inbox. A later one takes out what it has read and no more: its id may
        // be starting anew at this moment.
        let ends = fenced.before.status == InstanceStatus::Running;
        states.completed.push(state.completed_at.filter(|_| ends).map(|at| at.0.cast_signed()));
        states.shard.push(small(shard));
    }

    fn add_events(&mut self, number: i32, fenced: &FencedTurn) {
        let events = &mut self.events;
        for (execution, event) in &fenced.turn.events {
            // The outcome of an activity is unique by the event that scheduled it; its message needs no index entry too.
            let told_by_source =
                matches!(event.kind, EventKind::ActivityCompleted { .. } | EventKind::ActivityFailed { .. });
            let message = event.message_id.as_ref().filter(|_| !told_by_source);
            events.turn.push(number);
            events.instance.push(fenced.instance.as_str().to_owned());
            events.epoch.push(number_of(fenced.epoch.0));
            events.execution.push(number_of(execution.0));
            events.event.push(number_of(event.event_id.0));
            events.terminal.push(event.kind.is_terminal());
            events.source.push(event.source_event_id.map(|id| number_of(id.0)));
            events.message.push(message.map(|id| id.as_str().to_owned()));
            events.at.push(event.at.0.cast_signed());
            let data = encode(&event.kind);
            self.bytes += data.len();
            events.data.push(data);
        }
    }

    /// Only the last change of each key is written, and none before the last clearing of all.
    fn add_values(&mut self, number: i32, instance: &str, changes: &[KvChange]) {
        let since = changes.iter().rposition(|change| matches!(change, KvChange::ClearAll));
        if since.is_some() {
            self.values.add(number, instance, &KvChange::ClearAll);
        }
        let mut last: HashMap<&str, &KvChange> = HashMap::new();
        for change in &changes[since.map_or(0, |at| at + 1)..] {
            match change {
                KvChange::Set(entry) => last.insert(&entry.key, change),
                KvChange::Clear(key) => last.insert(key, change),
                KvChange::ClearAll => None,
            };
        }
        for change in last.into_values() {
            if let KvChange::Set(entry) = change {
                self.bytes += entry.value.len();
            }
            self.values.add(number, instance, change);
        }
    }
}

impl Values {
    fn add(&mut self, turn: i32, instance: &str, change: &KvChange) {
        let (op, key, value) = match change {
            KvChange::ClearAll => (0, None, None),
            KvChange::Clear(key) => (1, Some(key.clone()), None),
            KvChange::Set(entry) => {
                let value = (stored(&entry.value), entry.last_updated_at_ms.cast_signed());
                (2, Some(entry.key.clone()), Some(value))
            }
        };
        let (value, updated) = value.unzip();
        self.turn.push(turn);
        self.instance.push(instance.to_owned());
        self.op.push(op);
        self.key.push(key);
        self.value.push(value);
        self.updated.push(updated);
    }
}

/// A message of a turn, and whose turn it is.
struct Outgoing<'a> {
    turn: i32,
    kind: i16,
    from: &'a str,
    from_shard: ShardId,
    to: &'a str,
    to_shard: ShardId,
    message: &'a Message,
    /// What the sender is told when the id that it starts is taken.
    taken: Option<&'a Message>,
}

impl Messages {
    fn add(&mut self, outgoing: &Outgoing<'_>) {
        let Outgoing { turn, kind, from, from_shard, to, to_shard, message, taken } = *outgoing;
        let start = match &message.kind {
            MessageKind::Start(start) => Some(start),
            _ => None,
        };
        self.turn.push(turn);
        self.kind.push(kind);
        self.from.push(from.to_owned());
        self.from_shard.push(small(from_shard));
        self.to.push(to.to_owned());
        self.to_shard.push(small(to_shard));
        self.id.push(message.id.as_str().to_owned());
        self.queue.push(queue_of(message));
        self.data.push(encode(message));
        self.orchestration.push(start.map(|start| start.name.clone()));
        self.parent.push(parent_of(message));
        self.taken_id.push(taken.map(|taken| taken.id.as_str().to_owned()));
        self.taken_data.push(taken.map(encode));
    }
}

/// Numbers of turns in a group, events, executions and epochs stay far below their column's range.
pub(super) fn number_of(id: u64) -> i32 {
    i32::try_from(id).unwrap_or(i32::MAX)
}

pub(super) fn queue_of(message: &Message) -> Option<String> {
    match &message.kind {
        MessageKind::Enqueue { queue, .. } => Some(queue.clone()),
        _ => None,
    }
}

pub(super) fn parent_of(message: &Message) -> Option<String> {
    match &message.kind {
        MessageKind::Start(start) => start.parent.as_ref().map(|parent| parent.instance.as_str().to_owned()),
        _ => None,
    }
}
