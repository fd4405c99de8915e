//! What a history says is still open.

use std::collections::BTreeSet;

use crate::journal::OpKind;
use crate::{ActivityItem, ActivityKey, EventId, EventKind, HistoryEvent, InstanceId, InstanceState, Millis};

/// Activities and children of a history that have no outcome in it.
pub(crate) fn outstanding_in(history: &[HistoryEvent]) -> Vec<(EventId, OpKind)> {
    let closed: BTreeSet<EventId> = history.iter().filter_map(|event| event.source_event_id).collect();
    let open = history.iter().filter(|event| !closed.contains(&event.event_id));
    open.filter_map(|event| match &event.kind {
        EventKind::ActivityScheduled { token, .. } => Some((event.event_id, OpKind::Activity { token: *token })),
        EventKind::SubOrchestrationScheduled { instance, token, .. } => {
            Some((event.event_id, OpKind::Child { instance: InstanceId::new(instance), token: *token }))
        }
        _ => None,
    })
    .collect()
}

/// Items for the activities of a history that have no outcome in it.
pub(crate) fn outstanding_activities(
    instance: &InstanceId,
    state: &InstanceState,
    history: &[HistoryEvent],
) -> Vec<ActivityItem> {
    let traceparent = history.first().and_then(|event| match &event.kind {
        EventKind::OrchestrationStarted { traceparent, .. } => traceparent.clone(),
        _ => None,
    });
    let open: BTreeSet<EventId> = outstanding_in(history).into_iter().map(|(id, _)| id).collect();
    let events = history.iter().filter(|event| open.contains(&event.event_id));
    events
        .filter_map(|event| {
            let key = ActivityKey { instance: instance.clone(), execution: state.execution, event: event.event_id };
            item_of(key, &event.kind, state, traceparent.clone(), event.at)
        })
        .collect()
}

/// The item that a scheduling event stands for.
pub(crate) fn item_of(
    key: ActivityKey,
    kind: &EventKind,
    state: &InstanceState,
    traceparent: Option<String>,
    scheduled_at: Millis,
) -> Option<ActivityItem> {
    let EventKind::ActivityScheduled { name, input, session_id, tag, token, attempt, first_event_id, timeouts } = kind
    else {
        return None;
    };
    let first_event = first_event_id.map_or(key.event, EventId);
    Some(ActivityItem {
        key,
        token: *token,
        name: name.clone(),
        input: input.clone(),
        input_stored: false,
        tag: tag.clone(),
        session_id: session_id.clone(),
        attempt: *attempt,
        scheduled_at,
        timeouts: *timeouts,
        first_event,
        orchestration: state.orchestration.clone(),
        version: state.version.clone(),
        traceparent,
    })
}
