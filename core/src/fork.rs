//! Copies the beginning of a history, so that a new instance goes on from there.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::outstanding::outstanding_in;
use crate::{EventId, EventKind, ExecutionId, ForkPoint, HistoryEvent, InstanceId, InstanceState, KvEntry};

/// Why a history cannot be forked at an event.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("cannot fork at event {at}: {reason}; {}", nearest.map_or("no event allows it".to_owned(), |id| format!("the nearest event that allows it is {id}")))]
pub struct ForkError {
    /// What was asked for.
    pub at: EventId,
    /// What stands against it.
    pub reason: &'static str,
    /// The last event before it at which a fork is possible, or else the first one after it.
    pub nearest: Option<EventId>,
}

/// A copy of an instance's beginning.
#[derive(Clone, Debug)]
pub struct Fork {
    /// The row of the copy.
    pub state: InstanceState,
    /// Its history.
    pub history: Vec<HistoryEvent>,
    /// Its key-value state.
    pub kv: Vec<KvEntry>,
}

/// Whose history is copied.
#[derive(Clone, Debug)]
pub struct ForkOrigin {
    /// The instance.
    pub instance: InstanceId,
    /// Which of its executions.
    pub execution: ExecutionId,
}

/// The row and history of a new instance that shares all events up to `at`; `seed` are 64 random bits.
///
/// `at` must be the end of a turn's events, with no child outstanding. Activities that are outstanding there start anew. Of the
/// last turn of an execution, how it ended is not copied: the new instance decides that itself.
pub fn fork_history(history: &[HistoryEvent], at: EventId, origin: &ForkOrigin, seed: u64) -> Result<Fork, ForkError> {
    let places = places(history);
    let wanted = usize::try_from(at.0).unwrap_or(usize::MAX);
    let place = wanted.checked_sub(1).and_then(|index| places.get(index));
    let kept = match place.copied().unwrap_or(Err("the history has no such event")) {
        Ok(kept) => kept,
        Err(reason) => return Err(ForkError { at, reason, nearest: nearest(&places, wanted) }),
    };
    let mut copied = history[..kept].to_vec();
    let last = EventId(kept as u64);
    if let Some(EventKind::OrchestrationStarted { forks, .. }) = copied.first_mut().map(|event| &mut event.kind) {
        // When a copy is copied again, the part that it shares with its own origin counts as copied from that origin.
        let before = forks.iter().find(|fork| last <= fork.at);
        let (instance, execution) =
            before.map_or((&origin.instance, origin.execution), |fork| (&fork.instance, fork.execution));
        let point = ForkPoint { at: last, instance: instance.clone(), execution, seed };
        forks.retain(|fork| fork.at < last);
        forks.push(point);
    }
    let (mut state, kv) = replayed_state(&mut copied);
    state.pending = u32::try_from(outstanding_in(&copied).len()).unwrap_or(u32::MAX);
    Ok(Fork { state, history: copied, kv })
}

/// The row and values that the events of a copy come to. What belongs to the instance that was copied is taken out of them.
fn replayed_state(copied: &mut [HistoryEvent]) -> (InstanceState, Vec<KvEntry>) {
    let mut kv: BTreeMap<String, KvEntry> = BTreeMap::new();
    let last_event_id = EventId(copied.len() as u64);
    let mut state = InstanceState { execution: ExecutionId(1), last_event_id, ..InstanceState::default() };
    for event in copied {
        event.message_id = None;
        match &mut event.kind {
            EventKind::OrchestrationStarted { name, version, parent_instance, parent_id, carried, .. } => {
                state.orchestration.clone_from(name);
                state.version.clone_from(version);
                state.custom_status.clone_from(&carried.custom_status);
                state.custom_status_version = carried.custom_status_version;
                kv.extend(carried.kv.iter().map(|entry| (entry.key.clone(), entry.clone())));
                *parent_instance = None;
                *parent_id = None;
            }
            EventKind::CustomStatusUpdated { status } => {
                state.custom_status.clone_from(status);
                state.custom_status_version += 1;
            }
            EventKind::KeyValueSet { key, value, last_updated_at_ms } => {
                let (key, value, last_updated_at_ms) = (key.clone(), value.clone(), *last_updated_at_ms);
                kv.insert(key.clone(), KvEntry { key, value, last_updated_at_ms });
            }
            EventKind::KeyValueCleared { key } => {
                kv.remove(key);
            }
            EventKind::KeyValuesCleared => kv.clear(),
            EventKind::OrchestrationPaused => state.paused = true,
            EventKind::OrchestrationResumed => state.paused = false,
            _ => {}
        }
        // Due at once: the first turn finds out what the instance waits for.
        state.wake_at = Some(event.at);
    }
    (state, kv.into_values().collect())
}

/// For each event, how many events a fork there copies, or what stands against it.
fn places(history: &[HistoryEvent]) -> Vec<Result<usize, &'static str>> {
    // Of an ended execution, its last events are how it ended: what was open was cancelled.
    let ended = history.last().filter(|last| last.kind.is_terminal()).map(|_| {
        let closes = |event: &&HistoryEvent| event.kind.is_terminal() || event.kind.is_cancel_request();
        history.len() - history.iter().rev().take_while(closes).count()
    });
    let closing = ended.unwrap_or(history.len());
    let mut children = BTreeSet::new();
    let (mut cancelled, mut places) = (false, Vec::with_capacity(history.len()));
    for (index, event) in history.iter().enumerate() {
        let kept = index + 1;
        if kept <= closing {
            children
                .extend(matches!(event.kind, EventKind::SubOrchestrationScheduled { .. }).then_some(event.event_id));
            event.source_event_id.map(|source| children.remove(&source));
        }
        cancelled |= matches!(event.kind, EventKind::OrchestrationCancelRequested { .. });
        let is_last_of_turn = kept >= closing || history.get(kept).is_none_or(|next| !next.kind.is_command());
        places.push(match () {
            () if event.kind.is_terminal() => Err("the execution has ended there"),
            () if cancelled => Err("a cancel had come there"),
            () if !is_last_of_turn => Err("it is in the middle of a turn"),
            () if !children.is_empty() => Err("a child is outstanding there"),
            () => Ok(kept.min(closing)),
        });
    }
    places
}

fn nearest(places: &[Result<usize, &'static str>], wanted: usize) -> Option<EventId> {
    let allowed = |index: &usize| places[*index].is_ok();
    let before = (0..wanted.saturating_sub(1).min(places.len())).rev().find(allowed);
    before.or_else(|| (wanted..places.len()).find(allowed)).map(|index| EventId(index as u64 + 1))
}
