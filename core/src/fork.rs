//! Copies the beginning of a history, so that a new instance goes on from there.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::ending::outstanding_in;
use crate::journal::OpKind;
use crate::{EventId, EventKind, ExecutionId, HistoryEvent, InstanceState, KvEntry};

/// Why a history cannot be forked at an event.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("cannot fork at event {at}: {reason}; {}", nearest.map_or("no event allows it".to_owned(), |id| format!("the nearest event that allows it is {id}")))]
pub struct ForkError {
    /// What was asked for.
    pub at: EventId,
    /// What stands against it.
    pub reason: &'static str,
    /// The last event before it at which a fork is possible.
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

/// The row and history of a new instance that shares all events up to `at`.
///
/// `at` must be the end of a turn's events, with no child outstanding. Activities that are outstanding there start anew.
pub fn fork_history(history: &[HistoryEvent], at: EventId) -> Result<Fork, ForkError> {
    let wanted = usize::try_from(at.0).unwrap_or(usize::MAX).min(history.len());
    if let Some(reason) = obstacle(history, at) {
        let nearest = (1..wanted as u64).rev().map(EventId).find(|id| obstacle(history, *id).is_none());
        return Err(ForkError { at, reason, nearest });
    }
    let mut copied = history[..wanted].to_vec();
    let mut kv: BTreeMap<String, KvEntry> = BTreeMap::new();
    let mut state = InstanceState { execution: ExecutionId(1), last_event_id: at, ..InstanceState::default() };
    for event in &mut copied {
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
    state.pending = u32::try_from(outstanding_in(&copied).len()).unwrap_or(u32::MAX);
    Ok(Fork { state, history: copied, kv: kv.into_values().collect() })
}

fn obstacle(history: &[HistoryEvent], at: EventId) -> Option<&'static str> {
    let kept = usize::try_from(at.0).ok().filter(|count| (1..=history.len()).contains(count));
    let Some(kept) = kept else { return Some("the history has no such event") };
    if history[..kept].iter().any(|event| event.kind.is_terminal()) {
        return Some("the execution has ended there");
    }
    if history.get(kept).is_some_and(|next| next.kind.is_command()) {
        return Some("it is in the middle of a turn");
    }
    let children = outstanding_in(&history[..kept]).into_iter().any(|(_, op)| matches!(op, OpKind::Child { .. }));
    children.then_some("a child is outstanding there")
}
