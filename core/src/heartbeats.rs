//! Which stored heartbeats nobody will read any more.
//!
//! A heartbeat is read by the next attempt of its activity, so it is deleted in the turn that records the last attempt's outcome.
//! The heartbeats themselves are only in the store; this tracks which activities may have one.

use std::collections::{BTreeMap, BTreeSet};

use crate::{EventId, EventKind, ExecutionId, HistoryEvent};

/// Activities that may have a stored heartbeat, by the scheduling event of their first attempt.
#[derive(Default)]
pub(crate) struct Heartbeats {
    /// The first attempts of later ones.
    first_of: BTreeMap<EventId, EventId>,
    /// Those of which an attempt has ended.
    ended: BTreeSet<(ExecutionId, EventId)>,
}

impl Heartbeats {
    pub(crate) fn of_history(execution: ExecutionId, history: &[HistoryEvent]) -> Self {
        let mut heartbeats = Self::default();
        history.iter().for_each(|event| heartbeats.note(execution, event));
        heartbeats
    }

    /// Takes note of an event that is appended.
    pub(crate) fn note(&mut self, execution: ExecutionId, event: &HistoryEvent) {
        let has_spoken = match &event.kind {
            EventKind::ActivityScheduled { first_event_id: Some(first), .. } => {
                self.first_of.insert(event.event_id, EventId(*first));
                return;
            }
            EventKind::ActivityCompleted { run, .. } | EventKind::ActivityFailed { run, .. } => {
                run.as_ref().is_some_and(|run| run.heartbeat)
            }
            // It may be running, and its worker has told nobody yet whether it has spoken.
            EventKind::ActivityCancelRequested { .. } => true,
            EventKind::OrchestrationStarted { .. } => {
                self.first_of.clear();
                return;
            }
            _ => return,
        };
        let Some(source) = event.source_event_id else { return };
        let first = self.first_of.remove(&source).unwrap_or(source);
        if has_spoken {
            self.ended.insert((execution, first));
        }
    }

    /// The turns that were replayed have already deleted their heartbeats, except those of activities that are retried.
    pub(crate) fn keep_only(&mut self, retried: &BTreeSet<EventId>) {
        self.ended.retain(|(_, first)| retried.contains(first));
    }

    /// Takes those that are not tried again.
    pub(crate) fn take_stale(
        &mut self,
        current: ExecutionId,
        retried: &BTreeSet<EventId>,
    ) -> Vec<(ExecutionId, EventId)> {
        let is_stale = |(execution, first): &(ExecutionId, EventId)| *execution != current || !retried.contains(first);
        let stale: Vec<_> = self.ended.iter().filter(|ended| is_stale(ended)).copied().collect();
        self.ended.retain(|ended| !is_stale(ended));
        stale
    }
}
