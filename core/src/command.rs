//! Commands of the code become events and effects.
//!
//! Called while a turn is decided, once for each command of a poll and once for each outcome that is applied. Every event
//! of an instance passes [`WarmInstance::append`].

use crate::draft::{Draft, NewChild, NewEvent};
use crate::instance::WarmInstance;
use crate::journal::Command;
use crate::replay::parent_link;
use crate::{
    ActivityKey, AppErrorKind, ErrorDetails, EventId, EventKind, HistoryEvent, InstanceId, KvChange, KvEntry, Message,
    MessageId, MessageKind, OutboundMessage, StartMessage,
};

impl WarmInstance {
    /// Turns a command of the code into an event and, where it has one, into an effect.
    pub(crate) fn record(&mut self, draft: &mut Draft, command: Command) {
        let key = ActivityKey { instance: self.id.clone(), execution: self.state.execution, event: command.id };
        match &command.kind {
            EventKind::ActivityScheduled { .. } => {
                let traceparent = self.live().traceparent.clone();
                if let Some(item) = crate::outstanding::item_of(key, &command.kind, &self.state, traceparent, draft.now)
                {
                    draft.dispatch.insert(command.id, item);
                }
            }
            EventKind::ActivityCancelRequested { .. } => {
                if let Some(source) = command.source {
                    draft.cancel_activity(ActivityKey { event: source, ..key });
                }
            }
            EventKind::SubOrchestrationScheduled { .. } => {
                let start = self.child_start(command.id, &command.kind);
                draft.children.extend(start.map(|start| (command.id, NewChild { start, cancelled: None })));
            }
            EventKind::SubOrchestrationCancelRequested { reason } => {
                self.cancel_child(draft, command.source, reason.clone());
            }
            EventKind::OrchestrationChained { name, instance, input, version } => {
                let start = StartMessage {
                    name: name.clone(),
                    version: version.clone(),
                    input: input.clone(),
                    parent: None,
                    traceparent: self.live().traceparent.clone(),
                };
                let id = MessageId::new(format!("detached:{}:{}:{}", self.id, self.state.execution, command.id));
                let message = Message { id, kind: MessageKind::Start(start) };
                draft.turn.outbound.push(OutboundMessage { to: InstanceId::new(instance), message, when_taken: None });
            }
            EventKind::CustomStatusUpdated { status } => {
                self.state.custom_status.clone_from(status);
                self.state.custom_status_version += 1;
            }
            EventKind::KeyValueSet { key, value, last_updated_at_ms } => draft.turn.kv.push(KvChange::Set(KvEntry {
                key: key.clone(),
                value: value.clone(),
                last_updated_at_ms: *last_updated_at_ms,
            })),
            EventKind::KeyValueCleared { key } => draft.turn.kv.push(KvChange::Clear(key.clone())),
            EventKind::KeyValuesCleared => draft.turn.kv.push(KvChange::ClearAll),
            _ => {}
        }
        self.append(draft, NewEvent { source: command.source, message: None, kind: command.kind });
    }

    /// One poll must not ask for more than a whole history may hold: no store could write it at once, now or at the next try.
    pub(crate) fn check_bytes(&self, commands: &[Command]) -> Result<(), ErrorDetails> {
        let (bytes, max) =
            (commands.iter().map(|command| weight(&command.kind)).sum::<u64>(), self.limits.history_bytes_max);
        if bytes <= max {
            return Ok(());
        }
        let text = format!(
            "one turn asked for {bytes} bytes, the limit is {max} (history_bytes_max): keep large data elsewhere and pass \
             references, or schedule less at a time"
        );
        Err(ErrorDetails::application(AppErrorKind::OrchestrationFailed, text))
    }

    /// Appends to the history of the current execution.
    pub(crate) fn append(&mut self, draft: &mut Draft, NewEvent { source, message, kind }: NewEvent) -> EventId {
        let event_id = self.state.last_event_id.next();
        if let Some(id) = &message {
            self.applied.insert(id.clone());
        }
        if let EventKind::OrchestrationStarted { name, version, .. } = &kind {
            self.parent = parent_link(&kind);
            self.begun_by.clone_from(&message);
            self.state.orchestration.clone_from(name);
            self.state.version.clone_from(version);
        }
        let event = HistoryEvent { event_id, source_event_id: source, message_id: message, at: draft.now, kind };
        self.heartbeats.note(self.state.execution, &event);
        self.state.last_event_id = event_id;
        self.state.history_bytes += weight(&event.kind);
        draft.turn.events.push((self.state.execution, event));
        event_id
    }
}

/// Roughly what an event takes in the store: its texts and a constant.
fn weight(kind: &EventKind) -> u64 {
    const FIXED: usize = 64;
    let texts = match kind {
        EventKind::ActivityScheduled { name, input, .. }
        | EventKind::OrchestrationStarted { name, input, .. }
        | EventKind::SubOrchestrationScheduled { name, input, .. }
        | EventKind::OrchestrationChained { name, input, .. } => name.len() + input.len(),
        EventKind::ActivityCompleted { result, .. } | EventKind::SubOrchestrationCompleted { result } => result.len(),
        EventKind::ExternalEvent { data, .. } | EventKind::QueueEventDelivered { data, .. } => data.len(),
        EventKind::KeyValueSet { value, .. } => value.len(),
        EventKind::CustomStatusUpdated { status } => status.as_deref().map_or(0, str::len),
        EventKind::OrchestrationCompleted { output: text } | EventKind::OrchestrationContinuedAsNew { input: text } => {
            text.len()
        }
        _ => 0,
    };
    (FIXED + texts) as u64
}
