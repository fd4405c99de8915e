//! Committing turns and reading what actors are hydrated from.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use outlast_core::{
    EventId, Incoming, InstanceId, InstanceStatus, KvChange, MessageKind, Millis, OutboundMessage, ShardId,
};
use outlast_storage::{
    Arrivals, CommitReply, Due, Error, FencedTurn, InboxCursor, Loaded, Mailed, TurnOutcome, TurnStore, Wake,
};
use tokio::time::sleep;

use super::SimulatedStore;
use super::tables::{Instance, Transaction};

#[async_trait]
impl TurnStore for SimulatedStore {
    async fn commit(&self, group: Vec<FencedTurn>) -> Result<CommitReply, Error> {
        let server = Arc::clone(&self.server);
        self.change(move |tx| {
            let commit = |turn: FencedTurn| {
                let Some(witness) = server.witness.get() else { return tx.commit(turn) };
                let outcome = tx.commit(turn.clone());
                witness(&turn, &outcome);
                outcome
            };
            let outcomes = group.into_iter().map(commit).collect();
            Ok(CommitReply { now: tx.now, outcomes })
        })
        .await
    }

    async fn load(&self, instance: &InstanceId) -> Result<Option<Loaded>, Error> {
        self.read(|tables, _| {
            let found = tables.instances.get(instance)?;
            let begun = found.state.last_event_id > EventId(0);
            let history = found.events(found.state.execution).filter(|_| begun).cloned().collect();
            let inbox = found.inbox_after(InboxCursor::default());
            let cursor = InboxCursor { transaction: tables.horizon(), ..InboxCursor::default() };
            Some(Loaded { shard: found.shard, state: found.state.clone(), history, inbox, cursor, mailed: None })
        })
        .await
    }

    async fn inbox(&self, instance: &InstanceId, after: InboxCursor) -> Result<(Vec<Incoming>, InboxCursor), Error> {
        self.read(|tables, _| {
            let rows = tables.instances.get(instance).map(|found| found.inbox_after(after)).unwrap_or_default();
            (rows, InboxCursor { transaction: tables.horizon(), ..InboxCursor::default() })
        })
        .await
    }

    async fn due(&self, shards: &[ShardId], until: Millis, limit: usize) -> Result<Vec<Due>, Error> {
        self.read(|tables, _| {
            let of_shards = tables.running().filter(|(_, found)| shards.contains(&found.shard));
            let due = of_shards.filter_map(|(id, found)| {
                let at = found.state.wake_at.filter(|at| *at <= until)?;
                Some(Due { at, shard: found.shard, instance: id.clone() })
            });
            let mut due: Vec<Due> = due.collect();
            due.sort_by_key(|due| due.at);
            due.truncate(limit);
            due
        })
        .await
    }

    async fn next_due(&self, shards: &[ShardId], after: Millis) -> Result<Option<Millis>, Error> {
        self.read(|tables, _| {
            let of_shards = tables.running().filter(|(_, found)| shards.contains(&found.shard));
            of_shards.filter_map(|(_, found)| found.state.wake_at).filter(|at| *at > after).min()
        })
        .await
    }

    async fn arrivals(&self, shards: &[ShardId], after: InboxCursor, limit: usize) -> Result<Arrivals, Error> {
        self.read(|tables, _| {
            // Older transactions may become visible behind the pages already read: the next look begins with the oldest open one.
            let horizon = if after.horizon == 0 { tables.horizon() } else { after.horizon };
            let of_shards = tables.instances.iter().filter(|(_, found)| shards.contains(&found.shard));
            let rows = of_shards.flat_map(|(id, found)| {
                let wake = Wake { shard: found.shard, instance: id.clone() };
                found.inbox.iter().map(move |(seq, row)| (row.transaction, *seq, wake.clone()))
            });
            let mut rows: Vec<(u64, outlast_core::InboxSeq, Wake)> =
                rows.filter(|(transaction, seq, _)| (*transaction, *seq) > (after.transaction, after.seq)).collect();
            rows.sort_by_key(|(transaction, seq, _)| (*transaction, *seq));
            let more = rows.len() > limit;
            rows.truncate(limit);
            let next = match rows.last() {
                Some((transaction, seq, _)) if more => InboxCursor { transaction: *transaction, seq: *seq, horizon },
                _ => InboxCursor { transaction: horizon, ..InboxCursor::default() },
            };
            let mut receivers: Vec<Wake> = rows.into_iter().map(|(_, _, wake)| wake).collect();
            receivers.dedup();
            Arrivals { receivers, next, more }
        })
        .await
    }

    async fn pending(&self, shards: &[ShardId], after: Option<&InstanceId>, limit: usize) -> Result<Vec<Wake>, Error> {
        self.read(|tables, _| {
            let of_shards = tables.running().filter(|(_, found)| shards.contains(&found.shard));
            let pending =
                of_shards.filter(|(id, found)| found.state.pending > 0 && after.is_none_or(|after| *id > after));
            pending.take(limit).map(|(id, found)| Wake { shard: found.shard, instance: id.clone() }).collect()
        })
        .await
    }

    async fn written_elsewhere(&self, seen: u64, timeout: Duration) -> u64 {
        sleep(timeout).await;
        seen.wrapping_add(1)
    }

    fn now(&self) -> Millis {
        self.server.now()
    }

    async fn sleep_until(&self, at: Millis) {
        loop {
            let now = self.server.now();
            if now >= at {
                return;
            }
            sleep(Duration::from_millis(at.0 - now.0)).await;
        }
    }
}

/// Why a turn is not written.
enum Refusal {
    Conflict,
    Refused(&'static str),
}

/// Whether the turn also changes the instance's row.
#[derive(PartialEq)]
enum Kind {
    Runs,
    /// Only removes messages that came in after the end.
    LeftOver,
}

impl Transaction<'_> {
    fn commit(&mut self, fenced: FencedTurn) -> TurnOutcome {
        let current = self.tables.shards.get(usize::from(fenced.shard.0)).map(|shard| shard.epoch);
        if current != Some(fenced.epoch) {
            return TurnOutcome::Fenced;
        }
        // Everything is checked before anything changes: nothing has to be undone.
        let Some(stored) = self.tables.instances.get(&fenced.instance) else { return TurnOutcome::Conflict };
        let kind = match check(stored, &fenced) {
            Ok(kind) => kind,
            Err(Refusal::Conflict) => return TurnOutcome::Conflict,
            Err(Refusal::Refused(reason)) => return TurnOutcome::Refused(reason.to_owned()),
        };
        TurnOutcome::Committed { wakes: self.write(fenced, &kind) }
    }

    fn write(&mut self, fenced: FencedTurn, kind: &Kind) -> Vec<Wake> {
        let (id, ends) = (&fenced.instance, *kind == Kind::Runs && fenced.turn.state.completed_at.is_some());
        let now = self.now;
        let Some(stored) = self.tables.instances.get_mut(id) else { return Vec::new() };
        if *kind == Kind::Runs {
            stored.state = fenced.turn.state;
            stored.updated = now;
            stored.shard = fenced.move_to.unwrap_or(fenced.shard);
        }
        for (execution, event) in fenced.turn.events {
            stored.history.entry(execution).or_default().insert(event.event_id, event);
        }
        for seq in &fenced.turn.consumed {
            stored.inbox.remove(seq);
        }
        for change in fenced.turn.kv {
            match change {
                KvChange::Set(entry) => drop(stored.kv.insert(entry.key.clone(), entry)),
                KvChange::Clear(key) => drop(stored.kv.remove(&key)),
                KvChange::ClearAll => stored.kv.clear(),
            }
        }
        for activity in &fenced.turn.heartbeats {
            stored.heartbeats.remove(activity);
        }
        // The end clears the whole inbox; a later turn removes only rows that it has read.
        if ends {
            stored.inbox.clear();
            stored.heartbeats.clear();
        } else {
            for message in fenced.turn.held {
                self.insert_message(id, message);
            }
        }
        fenced.turn.outbound.into_iter().filter_map(|outbound| self.send_from(id, outbound)).collect()
    }

    fn send_from(&mut self, sender: &InstanceId, outbound: OutboundMessage) -> Option<Wake> {
        let OutboundMessage { to, message, when_taken } = outbound;
        if let MessageKind::Start(start) = &message.kind {
            if let Some(shard) = self.insert_instance(&to, start) {
                self.insert_message(&to, message);
                return Some(Wake { shard, instance: to });
            }
            let shard = self.tables.instances.get(sender)?.shard;
            self.insert_message(sender, when_taken?);
            return Some(Wake { shard, instance: sender.clone() });
        }
        let shard = self.tables.instances.get(&to).filter(|receiver| receiver.is_running())?.shard;
        self.insert_message(&to, message);
        Some(Wake { shard, instance: to })
    }
}

fn check(stored: &Instance, fenced: &FencedTurn) -> Result<Kind, Refusal> {
    let turn = &fenced.turn;
    if stored.state.execution != turn.expected.execution || stored.state.last_event_id != turn.expected.last_event_id {
        return Err(Refusal::Conflict);
    }
    let only_consumes = turn.events.is_empty() && turn.outbound.is_empty() && turn.held.is_empty();
    let kind = match (stored.is_running(), only_consumes) {
        (true, _) => Kind::Runs,
        (false, true) => Kind::LeftOver,
        (false, false) => return Err(Refusal::Conflict),
    };
    if (turn.state.status == InstanceStatus::Running) != turn.state.completed_at.is_none() {
        return Err(Refusal::Refused("an instance that has ended has a moment of its end, and no other"));
    }
    check_events(stored, fenced)?;
    let mailed = fenced.mailed.filter(|mailed| turn.consumed.contains(&mailed.seq));
    if let Some(mailed) = mailed
        && stored.inbox.get(&mailed.seq).is_none_or(|row| Mailed::new(mailed.seq, &row.message) != mailed)
    {
        return Err(Refusal::Conflict);
    }
    let consumed: BTreeSet<_> = turn.consumed.iter().collect();
    if consumed.len() != turn.consumed.len() || consumed.iter().any(|seq| !stored.inbox.contains_key(seq)) {
        return Err(Refusal::Conflict);
    }
    // An end clears the inbox, and must not clear a new start that this turn has not seen.
    let replaces = |(seq, row): (_, &super::tables::InboxRow)| {
        matches!(row.message.kind, MessageKind::Replace(_)) && !consumed.contains(seq)
    };
    if kind == Kind::Runs && turn.state.completed_at.is_some() && stored.inbox.iter().any(replaces) {
        return Err(Refusal::Conflict);
    }
    Ok(kind)
}

/// What a database's constraints enforce.
fn check_events(stored: &Instance, fenced: &FencedTurn) -> Result<(), Refusal> {
    let (mut ids, mut sources, mut ends) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut messages = BTreeSet::new();
    for (execution, event) in &fenced.turn.events {
        let known = stored.history.get(execution);
        if known.is_some_and(|known| known.contains_key(&event.event_id)) || !ids.insert((execution, event.event_id)) {
            return Err(Refusal::Refused("an event is there already"));
        }
        if let Some(source) = event.source_event_id {
            let has_outcome = stored.events(*execution).any(|known| known.source_event_id == Some(source));
            if source >= event.event_id || has_outcome || !sources.insert((execution, source)) {
                return Err(Refusal::Refused("an outcome follows what it is the outcome of, once"));
            }
        }
        if let Some(message) = &event.message_id
            && (stored.has_applied(message) || !messages.insert(message))
        {
            return Err(Refusal::Refused("a message was applied before"));
        }
        let is_second_end = stored.events(*execution).any(|known| known.kind.is_terminal());
        if event.kind.is_terminal() && (is_second_end || !ends.insert(execution)) {
            return Err(Refusal::Refused("an execution ends once"));
        }
    }
    Ok(())
}
