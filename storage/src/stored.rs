//! What every store derives from the values of core in the same way: words, queues, and the shape of a turn.

use std::collections::BTreeMap;

use outlast_core::{EventId, EventKind, HistoryEvent, InstanceId, KvEntry, Message, MessageKind, StartMessage, Turn};

/// The word of an event kind in columns and indexes: the name that its stored form carries as `type`.
pub(crate) fn kind_name(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::OrchestrationStarted { .. } => "OrchestrationStarted",
        EventKind::OrchestrationCompleted { .. } => "OrchestrationCompleted",
        EventKind::OrchestrationFailed { .. } => "OrchestrationFailed",
        EventKind::OrchestrationContinuedAsNew { .. } => "OrchestrationContinuedAsNew",
        EventKind::OrchestrationCancelRequested { .. } => "OrchestrationCancelRequested",
        EventKind::OrchestrationPaused => "OrchestrationPaused",
        EventKind::OrchestrationResumed => "OrchestrationResumed",
        EventKind::ActivityScheduled { .. } => "ActivityScheduled",
        EventKind::ActivityCompleted { .. } => "ActivityCompleted",
        EventKind::ActivityFailed { .. } => "ActivityFailed",
        EventKind::ActivityCancelRequested { .. } => "ActivityCancelRequested",
        EventKind::TimerCreated { .. } => "TimerCreated",
        EventKind::TimerFired { .. } => "TimerFired",
        EventKind::ExternalSubscribed { .. } => "ExternalSubscribed",
        EventKind::ExternalEvent { .. } => "ExternalEvent",
        EventKind::ExternalSubscribedCancelled => "ExternalSubscribedCancelled",
        EventKind::QueueSubscribed { .. } => "QueueSubscribed",
        EventKind::QueueEventDelivered { .. } => "QueueEventDelivered",
        EventKind::QueueSubscriptionCancelled => "QueueSubscriptionCancelled",
        EventKind::OrchestrationChained { .. } => "OrchestrationChained",
        EventKind::SubOrchestrationScheduled { .. } => "SubOrchestrationScheduled",
        EventKind::SubOrchestrationCompleted { .. } => "SubOrchestrationCompleted",
        EventKind::SubOrchestrationFailed { .. } => "SubOrchestrationFailed",
        EventKind::SubOrchestrationCancelRequested { .. } => "SubOrchestrationCancelRequested",
        EventKind::CustomStatusUpdated { .. } => "CustomStatusUpdated",
        EventKind::KeyValueSet { .. } => "KeyValueSet",
        EventKind::KeyValueCleared { .. } => "KeyValueCleared",
        EventKind::KeyValuesCleared => "KeyValuesCleared",
    }
}

/// Status and output of the execution that ends with `last`.
pub(crate) fn execution_end(last: &EventKind) -> (&'static str, Option<String>) {
    match last {
        EventKind::OrchestrationCompleted { output } => ("Completed", Some(output.clone())),
        EventKind::OrchestrationFailed { details } => ("Failed", Some(details.display_message())),
        EventKind::OrchestrationContinuedAsNew { input } => ("ContinuedAsNew", Some(input.clone())),
        _ => ("Running", None),
    }
}

/// The queue that a message is for.
pub(crate) fn queue_of(message: &Message) -> Option<&str> {
    match &message.kind {
        MessageKind::Enqueue { queue, .. } => Some(queue),
        _ => None,
    }
}

/// What a start message begins.
pub(crate) fn start_of(message: &Message) -> Option<&StartMessage> {
    match &message.kind {
        MessageKind::Start(start) => Some(start),
        _ => None,
    }
}

/// The parent that a start message names.
pub(crate) fn parent_of(start: &StartMessage) -> Option<&InstanceId> {
    start.parent.as_ref().map(|link| &link.instance)
}

/// Says what is wrong with a turn's numbers: ids follow `expected` without gap, and the new row points at the last event.
pub(crate) fn gap_in(turn: &Turn) -> Option<String> {
    let mut execution = turn.expected.execution;
    let mut last = turn.expected.last_event_id;
    for (of, event) in &turn.events {
        if *of == execution.next() {
            (execution, last) = (*of, EventId(0));
        }
        if *of != execution || event.event_id != last.next() {
            return Some(format!("event {} of execution {of} does not follow event {last} of execution {execution}", event.event_id));
        }
        last = event.event_id;
    }
    let (row_execution, row_last) = (turn.state.execution, turn.state.last_event_id);
    let begins_next = row_execution == execution.next() && row_last == EventId(0);
    if begins_next || (row_execution == execution && row_last == last) {
        return None;
    }
    Some(format!("row at event {row_last} of execution {row_execution}, but history ends at event {last} of execution {execution}"))
}

/// The key-value state that a history leaves behind.
pub(crate) fn kv_of(history: &[HistoryEvent]) -> BTreeMap<String, KvEntry> {
    let mut entries = BTreeMap::new();
    for event in history {
        match &event.kind {
            EventKind::OrchestrationStarted { carried, .. } => {
                entries.extend(carried.kv.iter().map(|entry| (entry.key.clone(), entry.clone())));
            }
            EventKind::KeyValueSet { key, value, last_updated_at_ms } => {
                let entry = KvEntry { key: key.clone(), value: value.clone(), last_updated_at_ms: *last_updated_at_ms };
                entries.insert(key.clone(), entry);
            }
            EventKind::KeyValueCleared { key } => {
                entries.remove(key);
            }
            EventKind::KeyValuesCleared => entries.clear(),
            _ => {}
        }
    }
    entries
}
