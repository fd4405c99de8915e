//! How an execution or instance ends, and how a turn is completed.

use crate::draft::{Draft, NewChild, NewEvent};
use crate::first_event::started_event;
use crate::instance::WarmInstance;
use crate::journal::OpKind;
use crate::limits::cut_reason;
use crate::outstanding::outstanding_in;
use crate::replay::Execution;
use crate::{
    ActivityKey, AppErrorKind, Carried, Effect, ErrorDetails, EventId, EventKind, Handlers, Incoming, InstanceId,
    InstanceState, InstanceStatus, KvChange, KvEntry, Message, MessageId, MessageKind, OutboundMessage, ParentLink,
    StartMessage, Token, Turn, Verdict,
};

impl WarmInstance {
    /// Ends the execution and begins the next one in the same commit.
    pub(crate) fn continue_as_new(&mut self, draft: &mut Draft, handlers: &dyn Handlers) {
        let Some(old) = self.take_execution(draft) else { return };
        let (next, carried) = {
            let state = old.journal.lock();
            let kv = state.kv.iter().map(|(key, entry)| KvEntry {
                key: key.clone(),
                value: entry.value.clone(),
                last_updated_at_ms: entry.updated.0,
            });
            let carried = Carried {
                kv: kv.collect(),
                custom_status: state.custom_status.clone(),
                custom_status_version: state.custom_status_version,
            };
            (state.next_execution.clone(), carried)
        };
        let Some(next) = next else { return };
        self.withdraw_activities(draft, &old, "continued as new");
        let continued = EventKind::OrchestrationContinuedAsNew { input: next.input.clone() };
        self.append(draft, NewEvent::own(continued));
        draft.drop_unawaited();
        let name = self.state.orchestration.clone();
        let resolved = handlers.resolve(&name, next.version.as_deref());
        let version =
            next.version.or_else(|| resolved.map(|(version, _)| version)).unwrap_or_else(|| self.state.version.clone());
        let start = StartMessage {
            name,
            version: None,
            input: next.input,
            parent: old.parent.clone(),
            traceparent: old.traceparent.clone(),
        };
        let mut kind = started_event(&start, version, draft.seed, &self.limits);
        if let EventKind::OrchestrationStarted { carried: slot, .. } = &mut kind {
            *slot = carried;
        }
        self.state.execution = self.state.execution.next();
        self.state.last_event_id = EventId(0);
        self.state.history_bytes = 0;
        self.append(draft, NewEvent::own(kind));
        self.children.clear();
        // A cold instance knows the messages of its current execution; those of earlier ones have left the inbox for good.
        self.applied.clear();
        self.cold = draft.turn.events.last().map(|(_, event)| event.clone()).into_iter().collect();
        // The next execution's first poll is a turn of its own, so that an endless loop never holds a commit back.
        draft.turn.again = true;
    }

    /// Ends the instance and its children; wins over everything else that arrived.
    pub(crate) fn cancel(&mut self, draft: &mut Draft, messages: Vec<Incoming>, position: usize) {
        let mut reason = String::new();
        let mut id = None;
        for (index, incoming) in messages.into_iter().enumerate() {
            draft.consume(&incoming, if index == position { Verdict::Applied } else { Verdict::AlreadyDone });
            match incoming.message.kind {
                MessageKind::Cancel { reason: text, .. } if index == position => {
                    reason = text;
                    id = Some(incoming.message.id);
                }
                _ => self.note_start(draft, incoming.message),
            }
        }
        let kind = EventKind::OrchestrationCancelRequested { reason: reason.clone() };
        self.record_outside_code(draft, NewEvent { source: None, message: id, kind });
        let outstanding = match &self.execution {
            Some(execution) => execution.journal.lock().outstanding(),
            None => outstanding_in(&self.cold),
        };
        self.cancel_open(draft, outstanding, &cut_reason(&reason));
        let message = reason.clone();
        let details = ErrorDetails::application(AppErrorKind::Cancelled { reason }, message).within(&self.limits);
        self.terminate(draft, EventKind::OrchestrationFailed { details });
    }

    /// Records the start of an instance that ends before its code has run.
    pub(crate) fn note_start(&mut self, draft: &mut Draft, message: Message) {
        let MessageKind::Start(start) = message.kind else { return };
        if self.state.last_event_id == EventId(0) {
            let version = start.version.clone().unwrap_or_default();
            let kind = started_event(&start, version, draft.seed, &self.limits);
            self.record_outside_code(draft, NewEvent { source: None, message: Some(message.id), kind });
        }
    }

    /// Cancels what runs. The message stays in the inbox, with all that came after it, and begins the next execution, whose
    /// state is empty; what was queued for this life goes with it.
    pub(crate) fn replace(&mut self, draft: &mut Draft, mut messages: Vec<Incoming>, position: usize) {
        let MessageKind::Replace(start) = messages[position].message.kind.clone() else { return };
        for late in messages.split_off(position).into_iter().filter(|late| late.seq.is_none()) {
            draft.consume(&late, Verdict::Unknown);
        }
        let held = std::mem::take(&mut self.queues).into_values().flatten();
        draft.turn.consumed.extend(held.map(|(seq, _)| seq));
        let kind = MessageKind::Cancel { child: None, reason: "replaced by a new start".to_owned() };
        let id = MessageId::new(format!("replaced:{}", self.state.execution));
        messages.push(Incoming { seq: None, message: Message { id, kind } });
        self.cancel(draft, messages, position);
        draft.turn.reload = true;
        draft.turn.kv.push(KvChange::ClearAll);
        self.state = InstanceState {
            orchestration: start.name,
            custom_status_version: self.state.custom_status_version + 1,
            execution: self.state.execution.next(),
            ..InstanceState::default()
        };
        self.parent = None;
        self.begun_by = None;
        self.children.clear();
        self.applied.clear();
        self.cold = Vec::new();
    }

    pub(crate) fn end_completed(&mut self, draft: &mut Draft, output: String) {
        self.withdraw_all(draft, "the orchestration has completed");
        self.terminate(draft, EventKind::OrchestrationCompleted { output });
    }

    pub(crate) fn end_failed(&mut self, draft: &mut Draft, details: ErrorDetails) {
        if self.state.status != InstanceStatus::Running {
            return;
        }
        if let Some(execution) = self.execution.as_mut() {
            // What a diverged or failed poll asked for was never decided.
            execution.take_commands();
        }
        let open = match self.take_execution(draft) {
            Some(execution) => execution.journal.lock().outstanding(),
            None => outstanding_in(&self.cold),
        };
        // What a refused poll had opened was never recorded.
        let last = self.state.last_event_id;
        let open = open.into_iter().filter(|(event, _)| *event <= last).collect();
        self.cancel_open(draft, open, "the orchestration has failed");
        let details = details.within(&self.limits);
        self.terminate(draft, EventKind::OrchestrationFailed { details });
    }

    /// Cancels activities and children that have no outcome.
    fn cancel_open(&mut self, draft: &mut Draft, open: Vec<(EventId, OpKind)>, reason: &str) {
        for (event, op) in open {
            match op {
                OpKind::Activity { .. } => self.withdraw(draft, event, &op, reason),
                OpKind::Child { .. } => {
                    let kind = EventKind::SubOrchestrationCancelRequested { reason: reason.to_owned() };
                    self.append(draft, NewEvent::about(event, kind));
                    self.cancel_child(draft, Some(event), reason.to_owned());
                }
                OpKind::Timer { .. } | OpKind::Wait { .. } | OpKind::Dequeue { .. } => {}
            }
        }
    }

    fn withdraw_all(&mut self, draft: &mut Draft, reason: &str) {
        if let Some(execution) = self.take_execution(draft) {
            self.withdraw_activities(draft, &execution, reason);
        } else {
            for (event, op) in outstanding_in(&self.cold) {
                self.withdraw(draft, event, &op, reason);
            }
        }
    }

    /// Cancels the activities of an execution that ends. Children go on; nobody waits for their outcome.
    pub(crate) fn withdraw_activities(&mut self, draft: &mut Draft, execution: &Execution, reason: &str) {
        let outstanding = execution.journal.lock().outstanding();
        for (event, op) in outstanding {
            self.withdraw(draft, event, &op, reason);
        }
    }

    fn withdraw(&mut self, draft: &mut Draft, event: EventId, op: &OpKind, reason: &str) {
        if matches!(op, OpKind::Activity { .. }) {
            let kind = EventKind::ActivityCancelRequested { reason: reason.to_owned() };
            self.append(draft, NewEvent::about(event, kind));
            draft.cancel_activity(self.key(event));
        }
    }

    fn terminate(&mut self, draft: &mut Draft, kind: EventKind) {
        let parent = self.parent.clone();
        let (status, output, result) = match &kind {
            EventKind::OrchestrationCompleted { output } => {
                (InstanceStatus::Completed, output.clone(), Ok(output.clone()))
            }
            EventKind::OrchestrationFailed { details } => {
                let text = serde_json::to_string(details).expect("details are plain data");
                (InstanceStatus::Failed, text, Err(details.clone()))
            }
            other => unreachable!("{other:?} does not end an instance"),
        };
        draft.drop_unawaited();
        self.append(draft, NewEvent::own(kind));
        self.state.status = status;
        self.state.output = Some(output);
        self.state.completed_at = Some(draft.now);
        self.state.paused = false;
        draft.turn.outbound.extend(parent.map(|parent| outcome_message(&self.id, parent, result)));
        self.take_execution(draft);
        self.queues.clear();
    }

    /// The start of a child and what the parent gets when its id is taken.
    pub(crate) fn child_start(&self, event: EventId, kind: &EventKind) -> Option<OutboundMessage> {
        let EventKind::SubOrchestrationScheduled { name, instance, input, version, token } = kind else { return None };
        let parent = ParentLink { instance: self.id.clone(), execution: self.state.execution, event, token: *token };
        let to = InstanceId::new(instance);
        let taken = format!("instance id {instance:?} is taken: choose another id for the child");
        let details = ErrorDetails::application(AppErrorKind::OrchestrationFailed, taken);
        let when_taken = Some(outcome_message(&to, parent.clone(), Err(details)).message);
        let start = StartMessage {
            name: name.clone(),
            version: version.clone(),
            input: input.clone(),
            parent: Some(parent),
            traceparent: self.live().traceparent.clone(),
        };
        let id = MessageId::new(format!("start:{:016x}", token.0));
        Some(OutboundMessage { to, message: Message { id, kind: MessageKind::Start(start) }, when_taken })
    }

    /// Cancels a child. One that was scheduled in this very turn gets its start first, so that it exists and ends as cancelled.
    pub(crate) fn cancel_child(&mut self, draft: &mut Draft, source: Option<EventId>, reason: String) {
        let Some(source) = source else { return };
        if let Some(child) = draft.children.get_mut(&source) {
            child.cancelled.get_or_insert(reason);
            return;
        }
        if let Some((instance, token)) = self.children.remove(&source) {
            draft.turn.outbound.push(cancel_message(instance, token, reason));
        }
    }

    /// Puts the code away. What it logged in its last turn is said all the same.
    fn take_execution(&mut self, draft: &mut Draft) -> Option<Execution> {
        let execution = self.execution.take()?;
        draft.turn.logs.append(&mut execution.journal.lock().logs);
        Some(execution)
    }

    fn key(&self, event: EventId) -> ActivityKey {
        ActivityKey { instance: self.id.clone(), execution: self.state.execution, event }
    }

    /// Fills in what follows from the events: the row, the effects, the log lines.
    pub(crate) fn finish(&mut self, mut draft: Draft) -> Turn {
        if let Some(execution) = &self.execution {
            let mut journal = execution.journal.lock();
            draft.turn.logs.append(&mut journal.logs);
            self.state.pending = journal.open_activities;
            if !self.state.paused {
                self.state.wake_at = journal.timers.first().map(|(at, _)| *at);
                let open = journal.first_outstanding();
                self.state.waits = waits(open.as_slice()).to_owned();
            }
        } else if self.state.status != InstanceStatus::Running {
            self.state.pending = 0;
            self.state.wake_at = None;
            self.state.waits = String::new();
        } else if draft.turn.again {
            // Due at once: if this node dies now, whoever takes over finds it.
            self.state.pending = 0;
            self.state.wake_at = Some(draft.now);
            self.state.waits = "next execution".to_owned();
        }
        let dispatched = std::mem::take(&mut draft.dispatch).into_values();
        draft.turn.effects.extend(dispatched.map(Effect::from));
        for (event, NewChild { start, cancelled }) in std::mem::take(&mut draft.children) {
            let MessageKind::Start(StartMessage { parent: Some(parent), .. }) = &start.message.kind else { continue };
            let (child, token) = (start.to.clone(), parent.token);
            // Both lie in its inbox before its first turn, and there a cancel wins.
            draft.turn.outbound.push(start);
            match cancelled {
                Some(reason) => draft.turn.outbound.push(cancel_message(child, token, reason)),
                None => {
                    self.children.insert(event, (child, token));
                }
            }
        }
        let stale = match &self.execution {
            Some(execution) => self.heartbeats.take_stale(self.state.execution, &execution.journal.lock().retried),
            None => self.heartbeats.take_stale(self.state.execution, &std::collections::BTreeSet::new()),
        };
        let names =
            stale.into_iter().map(|(execution, first)| crate::turn::idempotency_key(&self.id, execution, first));
        draft.turn.heartbeats = names.collect();
        draft.turn.state = self.state.clone();
        draft.turn
    }
}

fn cancel_message(child: InstanceId, token: Token, reason: String) -> OutboundMessage {
    let id = MessageId::new(format!("cancel:{:016x}", token.0));
    OutboundMessage {
        to: child,
        message: Message { id, kind: MessageKind::Cancel { child: Some(token), reason } },
        when_taken: None,
    }
}

fn outcome_message(child: &InstanceId, parent: ParentLink, result: Result<String, ErrorDetails>) -> OutboundMessage {
    let id = MessageId::new(format!("done:{:016x}:{child}", parent.token.0));
    let kind = MessageKind::ChildDone { execution: parent.execution, event: parent.event, token: parent.token, result };
    OutboundMessage { to: parent.instance, message: Message { id, kind }, when_taken: None }
}

/// Why a running instance waits, in a few words.
fn waits(open: &[(EventId, OpKind)]) -> &'static str {
    match open.first().map(|(_, kind)| kind) {
        Some(OpKind::Activity { .. }) => "activity",
        Some(OpKind::Timer { .. }) => "timer",
        Some(OpKind::Wait { .. }) => "event",
        Some(OpKind::Dequeue { .. }) => "queue",
        Some(OpKind::Child { .. }) => "child",
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::{
        Decision, InboxSeq, Incoming, InstanceId, InstanceState, Limits, Message, MessageId, MessageKind, Millis,
        OrchestrationContext, OrchestrationRegistry, Snapshot, StartMessage, TurnInput, WarmInstance,
    };

    #[test]
    fn an_endless_instance_keeps_no_message_ids_of_earlier_executions() {
        let code = |ctx: OrchestrationContext, _: String| async move {
            ctx.dequeue_event("queue").await;
            ctx.continue_as_new("").await
        };
        let handlers = OrchestrationRegistry::builder().register("Loop", code).build();
        let snapshot = Snapshot { state: InstanceState::begun("Loop"), history: Vec::new() };
        let mut warm = WarmInstance::hydrate(InstanceId::new("i"), snapshot, Arc::new(Limits::default()));
        let (name, input) = ("Loop".to_owned(), String::new());
        let start = StartMessage { name, version: None, input, parent: None, traceparent: None };
        let mut kind = MessageKind::Start(start);
        for number in 1..200 {
            let message = Message { id: MessageId::new(format!("m{number}")), kind };
            let messages = vec![Incoming { seq: Some(InboxSeq(number)), message }];
            for messages in [messages, Vec::new()] {
                let input = TurnInput { now: Millis(1), seed: 1, messages };
                assert!(matches!(warm.decide(input, &handlers), Decision::Turn(_)));
            }
            assert!(warm.applied.len() <= 2, "{} ids are kept", warm.applied.len());
            kind = MessageKind::Enqueue { queue: "queue".to_owned(), data: String::new() };
        }
        assert!(warm.state().execution.0 > 100);
    }
}
