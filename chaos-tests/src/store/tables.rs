//! What the database holds, and what one transaction sees of it.

use std::collections::{BTreeMap, BTreeSet};

use outlast_core::{
    Epoch, EventId, ExecutionId, HistoryEvent, InboxSeq, Incoming, InstanceId, InstanceState, InstanceStatus, KvEntry,
    Message, MessageId, Millis, NodeId, ShardId, StartMessage, WorkerId,
};
use outlast_storage::{InboxCursor, NodeInfo, Shortage};

/// Most inbox rows of one transaction: each transaction has so many row numbers of its own.
const TRANSACTION_ROWS_MAX: u64 = 1 << 20;

/// All rows.
pub(super) struct Tables {
    pub(super) instances: BTreeMap<InstanceId, Instance>,
    pub(super) shards: Vec<Shard>,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) sessions: BTreeMap<String, Session>,
    pub(super) shortages: BTreeMap<NodeId, Vec<Shortage>>,
    next_transaction: u64,
    /// Transactions that are under way.
    open: BTreeSet<u64>,
}

/// An instance with all that is deleted with it.
pub(super) struct Instance {
    pub(super) shard: ShardId,
    pub(super) state: InstanceState,
    pub(super) parent: Option<InstanceId>,
    pub(super) created: Millis,
    pub(super) updated: Millis,
    pub(super) history: BTreeMap<ExecutionId, BTreeMap<EventId, HistoryEvent>>,
    pub(super) inbox: BTreeMap<InboxSeq, InboxRow>,
    pub(super) kv: BTreeMap<String, KvEntry>,
    pub(super) heartbeats: BTreeMap<String, String>,
}

pub(super) struct InboxRow {
    pub(super) transaction: u64,
    pub(super) message: Message,
}

#[derive(Clone, Default)]
pub(super) struct Shard {
    pub(super) owner: Option<NodeId>,
    pub(super) epoch: Epoch,
}

pub(super) struct Node {
    pub(super) info: NodeInfo,
    pub(super) lease_until: Millis,
}

pub(super) struct Session {
    pub(super) worker: WorkerId,
    pub(super) used: Millis,
}

/// A transaction at the moment in which it becomes visible.
pub(super) struct Transaction<'a> {
    pub(super) tables: &'a mut Tables,
    pub(super) now: Millis,
    number: u64,
    rows: u64,
}

impl Tables {
    pub(super) fn new(shards: u16) -> Self {
        Self {
            instances: BTreeMap::new(),
            shards: vec![Shard::default(); usize::from(shards)],
            nodes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            shortages: BTreeMap::new(),
            next_transaction: 1,
            open: BTreeSet::new(),
        }
    }

    /// Begins a transaction; the inbox rows that it writes carry this number.
    pub(super) fn open(&mut self) -> u64 {
        let number = self.next_transaction;
        self.next_transaction += 1;
        self.open.insert(number);
        number
    }

    pub(super) fn close(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// The oldest transaction whose rows may still become visible.
    pub(super) fn horizon(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next_transaction)
    }

    pub(super) fn shard_count(&self) -> u16 {
        u16::try_from(self.shards.len()).unwrap_or(u16::MAX)
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (&InstanceId, &Instance)> {
        self.instances.iter().filter(|(_, instance)| instance.is_running())
    }

    pub(super) fn is_live(&self, node: &NodeId, now: Millis) -> bool {
        self.nodes.get(node).is_some_and(|node| node.lease_until >= now)
    }
}

impl Instance {
    fn begun(shard: ShardId, start: &StartMessage, now: Millis) -> Self {
        Self {
            shard,
            state: InstanceState::begun(&start.name),
            parent: start.parent.as_ref().map(|parent| parent.instance.clone()),
            created: now,
            updated: now,
            history: BTreeMap::new(),
            inbox: BTreeMap::new(),
            kv: BTreeMap::new(),
            heartbeats: BTreeMap::new(),
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.state.status == InstanceStatus::Running
    }

    pub(super) fn events(&self, execution: ExecutionId) -> impl Iterator<Item = &HistoryEvent> {
        self.history.get(&execution).into_iter().flat_map(BTreeMap::values)
    }

    pub(super) fn has_applied(&self, message: &MessageId) -> bool {
        self.history.values().flat_map(BTreeMap::values).any(|event| event.message_id.as_ref() == Some(message))
    }

    pub(super) fn is_waiting(&self, message: &MessageId) -> bool {
        self.inbox.values().any(|row| row.message.id == *message)
    }

    /// Rows that may not have been seen yet, in order.
    pub(super) fn inbox_after(&self, after: InboxCursor) -> Vec<Incoming> {
        let new = self.inbox.iter().filter(|(_, row)| row.transaction >= after.transaction);
        new.map(|(seq, row)| Incoming { seq: Some(*seq), message: row.message.clone() }).collect()
    }
}

impl<'a> Transaction<'a> {
    pub(super) fn new(tables: &'a mut Tables, number: u64, now: Millis) -> Self {
        Self { tables, now, number, rows: 0 }
    }

    /// Makes an instance; `None` when the id is taken.
    pub(super) fn insert_instance(&mut self, id: &InstanceId, start: &StartMessage) -> Option<ShardId> {
        if self.tables.instances.contains_key(id) {
            return None;
        }
        let shard = ShardId::of(id, self.tables.shard_count());
        self.tables.instances.insert(id.clone(), Instance::begun(shard, start, self.now));
        Some(shard)
    }

    /// Adds an inbox row; `None` when there is no such instance, or when a message with this id waits already.
    pub(super) fn insert_message(&mut self, to: &InstanceId, message: Message) -> Option<InboxSeq> {
        let receiver = self.tables.instances.get_mut(to)?;
        if receiver.is_waiting(&message.id) {
            return None;
        }
        assert!(self.rows < TRANSACTION_ROWS_MAX, "a transaction has run out of numbers for its rows");
        let seq = InboxSeq((self.number * TRANSACTION_ROWS_MAX + self.rows).cast_signed());
        self.rows += 1;
        receiver.inbox.insert(seq, InboxRow { transaction: self.number, message });
        Some(seq)
    }
}
