//! A warm instance and the decision of a turn.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::draft::{Draft, NewEvent};
use crate::first_event::started_event;
use crate::heartbeats::Heartbeats;
use crate::journal::OpKind;
use crate::replay::{Execution, Host, OutsideWake, Polled, parent_link};
use crate::{
    ActivityItem, ErrorDetails, EventId, EventKind, ExecutionId, Handlers, HistoryEvent, InboxSeq, Incoming,
    InstanceId, InstanceState, InstanceStatus, KvRead, Limits, Message, MessageId, MessageKind, Millis, ParentLink,
    StartMessage, Token, Turn, Verdict,
};

/// All that a warm instance is made of: its row and the history of its current execution.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The row.
    pub state: InstanceState,
    /// The history, in order.
    pub history: Vec<HistoryEvent>,
}

/// What a turn works on.
#[derive(Clone, Debug)]
pub struct TurnInput {
    /// The store's time.
    pub now: Millis,
    /// 64 random bits.
    pub seed: u64,
    /// What arrived, in order.
    pub messages: Vec<Incoming>,
}

/// What came of it.
#[derive(Debug)]
pub enum Decision {
    /// Something to commit.
    Turn(Box<Turn>),
    /// Nobody here has the code. The messages come back untouched.
    Unregistered {
        /// The orchestration.
        name: String,
        /// The version that it needs; `None` means any.
        version: Option<String>,
        /// What could not be applied.
        messages: Vec<Incoming>,
    },
}

/// What the outcome of an activity or child is of.
struct Awaited {
    execution: ExecutionId,
    event: EventId,
    token: Token,
}

/// An instance with its live future. It is a cache: dropped at any time, it is made again from its [`Snapshot`].
pub struct WarmInstance {
    pub(crate) id: InstanceId,
    pub(crate) limits: Arc<Limits>,
    pub(crate) state: InstanceState,
    /// History that is not replayed yet.
    pub(crate) cold: Vec<HistoryEvent>,
    pub(crate) execution: Option<Execution>,
    pub(crate) queues: BTreeMap<String, VecDeque<(InboxSeq, Message)>>,
    /// Messages that wait for the instance to be resumed.
    parked: Vec<Incoming>,
    outside: Option<OutsideWake>,
    shows_data: bool,
    pub(crate) applied: BTreeSet<MessageId>,
    /// The start that began this execution; `None` when it continues another one, or is a copy.
    pub(crate) begun_by: Option<MessageId>,
    /// Who waits for this instance's outcome.
    pub(crate) parent: Option<ParentLink>,
    /// Children that this execution has started, by scheduling event.
    pub(crate) children: BTreeMap<EventId, (InstanceId, Token)>,
    pub(crate) heartbeats: Heartbeats,
}

impl WarmInstance {
    /// An instance as stored. Its code runs when the first turn needs it.
    pub fn hydrate(id: InstanceId, snapshot: Snapshot, limits: Arc<Limits>) -> Self {
        let applied = snapshot.history.iter().filter_map(|event| event.message_id.clone()).collect();
        let children =
            crate::outstanding::outstanding_in(&snapshot.history).into_iter().filter_map(|(event, op)| match op {
                OpKind::Child { instance, token } => Some((event, (instance, token))),
                OpKind::Activity { .. } | OpKind::Timer { .. } | OpKind::Wait { .. } | OpKind::Dequeue { .. } => None,
            });
        Self {
            children: children.collect(),
            heartbeats: Heartbeats::of_history(snapshot.state.execution, &snapshot.history),
            begun_by: snapshot.history.first().and_then(|event| event.message_id.clone()),
            parent: snapshot.history.first().and_then(|event| parent_link(&event.kind)),
            id,
            limits,
            state: snapshot.state,
            cold: snapshot.history,
            execution: None,
            queues: BTreeMap::new(),
            parked: Vec::new(),
            outside: None,
            shows_data: false,
            applied,
        }
    }

    /// What to call when something other than a turn wakes the code: the next turn then says what is wrong with it.
    pub fn when_woken_outside(&mut self, tell: OutsideWake) {
        self.outside = Some(tell);
    }

    /// Lets errors about code that does not follow its history quote inputs and values. Without, they say how long those are
    /// and by what digest they can be told apart.
    pub fn show_data_in_errors(&mut self) {
        self.shows_data = true;
    }

    /// The row as of the last decided turn.
    pub fn state(&self) -> &InstanceState {
        &self.state
    }

    /// The start that began the current execution, by which the lives of an id are told apart: their executions are numbered alike.
    /// `None` when the execution continues another one, or is a copy.
    pub fn begun_by(&self) -> Option<&MessageId> {
        self.begun_by.as_ref()
    }

    /// Applies messages and due timers. Events, effects and the new row are in the turn; nothing else changed outside.
    pub fn decide(&mut self, input: TurnInput, handlers: &dyn Handlers) -> Decision {
        let mut draft = Draft::new(self.expected(), input.now, input.seed);
        let mut messages = std::mem::take(&mut self.parked);
        messages.extend(input.messages);
        let mut messages = self.sift(messages, &mut draft);
        if self.state.status != InstanceStatus::Running {
            return self.decided(draft);
        }
        self.begin_replaced(&mut messages);
        // A new start ends this life whatever else has come; a cancel that came later is for the new one.
        if let Some(position) = messages.iter().position(|m| matches!(m.message.kind, MessageKind::Replace(_))) {
            self.replace(&mut draft, messages, position);
            return self.decided(draft);
        }
        if let Some(position) = messages.iter().position(|m| matches!(m.message.kind, MessageKind::Cancel { .. })) {
            self.cancel(&mut draft, messages, position);
            return self.decided(draft);
        }
        let messages = self.park_while_paused(&mut draft, messages);
        if self.state.paused {
            return self.decided(draft);
        }
        let revived = if self.execution.is_some() { Ok(None) } else { self.revive(&mut draft, &messages, handlers) };
        match revived {
            Ok(Some(polled)) => self.after_poll(&mut draft, polled, handlers),
            Ok(None) => {}
            Err((name, version)) if draft.turn.events.is_empty() && draft.turn.consumed.is_empty() => {
                return Decision::Unregistered { name, version, messages };
            }
            Err(_) => {
                // What was decided so far stands; the next turn, due at once, finds the code missing.
                self.hold(&mut draft.turn, messages);
                self.state.wake_at = Some(draft.now);
                return self.decided(draft);
            }
        }
        self.run(&mut draft, messages, handlers);
        self.decided(draft)
    }

    /// A turn that only says that the instance cannot go on now and will be tried again.
    pub fn stall(&mut self, now: Millis, delay: Duration, waits: &str, messages: Vec<Incoming>) -> Turn {
        let mut turn = Turn { expected: self.expected(), ..Turn::default() };
        self.hold(&mut turn, messages);
        let waiting_already = self.state.stalled > 0 && self.state.wake_at.is_some_and(|at| at > now);
        if !waiting_already {
            self.state.stalled += 1;
            self.state.waits = waits.to_owned();
            self.state.wake_at = Some(now.plus(delay));
        }
        turn.state = self.state.clone();
        turn
    }

    /// Ends the instance with a failure that its code never sees. A start among the messages says who waits for it.
    pub fn fail(&mut self, input: TurnInput, details: ErrorDetails) -> Turn {
        let mut draft = Draft::new(self.expected(), input.now, input.seed);
        for incoming in input.messages {
            draft.consume(&incoming, Verdict::AlreadyDone);
            self.note_start(&mut draft, incoming.message);
        }
        self.end_failed(&mut draft, details);
        self.finish(draft)
    }

    /// Activities without an outcome, as they would be dispatched anew.
    pub fn outstanding(&self) -> Vec<ActivityItem> {
        self.open_items().into_iter().filter(|item| KvRead::of(item).is_none()).collect()
    }

    /// Reads of other instances' values that have no answer.
    pub fn outstanding_kv_reads(&self) -> Vec<KvRead> {
        self.open_items().iter().filter_map(KvRead::of).collect()
    }

    fn open_items(&self) -> Vec<ActivityItem> {
        if self.state.status != InstanceStatus::Running {
            return Vec::new();
        }
        crate::outstanding::outstanding_activities(&self.id, &self.state, &self.cold)
    }

    /// Whether the outcome of this activity is still waited for.
    pub fn awaits(&self, event: EventId, token: Token) -> bool {
        match &self.execution {
            Some(execution) => execution.open_token(event) == Some(token),
            None => self.open_items().iter().any(|item| item.key.event == event && item.token == token),
        }
    }

    /// Drops messages that were applied before or are for somebody else, and keeps those that are held at rest (queues).
    fn sift(&mut self, messages: Vec<Incoming>, draft: &mut Draft) -> Vec<Incoming> {
        let ended = self.state.status != InstanceStatus::Running;
        let started_by = messages.iter().find_map(|incoming| match &incoming.message.kind {
            MessageKind::Start(start) => start.parent.as_ref().map(|parent| parent.token),
            _ => None,
        });
        let parent = self.parent.as_ref().map(|parent| parent.token).or(started_by);
        let mut kept = Vec::with_capacity(messages.len());
        for incoming in messages {
            let foreign = matches!(incoming.message.kind, MessageKind::Cancel { child: Some(token), .. } if Some(token) != parent);
            if !ended && !foreign && !self.applied.contains(&incoming.message.id) {
                kept.push(incoming);
                continue;
            }
            draft.consume(&incoming, Verdict::AlreadyDone);
        }
        kept
    }

    /// The message that ended the life before is the start of this one.
    fn begin_replaced(&self, messages: &mut [Incoming]) {
        if self.state.last_event_id.0 > 0 || self.execution.is_some() {
            return;
        }
        let begins =
            |incoming: &&mut Incoming| matches!(incoming.message.kind, MessageKind::Start(_) | MessageKind::Replace(_));
        if let Some(first) = messages.iter_mut().find(begins)
            && let MessageKind::Replace(start) = &first.message.kind
        {
            first.message.kind = MessageKind::Start(start.clone());
        }
    }

    /// Keeps messages for later: rows stay in the inbox, what came directly becomes a row.
    fn hold(&mut self, turn: &mut Turn, messages: Vec<Incoming>) {
        for incoming in messages {
            match incoming.seq {
                Some(_) => self.parked.push(incoming),
                None => {
                    turn.verdicts.push((incoming.message.id.clone(), Verdict::Applied));
                    turn.held.push(incoming.message);
                }
            }
        }
    }

    fn park_while_paused(&mut self, draft: &mut Draft, messages: Vec<Incoming>) -> Vec<Incoming> {
        let mut waiting = Vec::new();
        for incoming in messages {
            let kind = match &incoming.message.kind {
                MessageKind::Pause if !self.state.paused => Some(EventKind::OrchestrationPaused),
                MessageKind::Resume if self.state.paused => Some(EventKind::OrchestrationResumed),
                MessageKind::Pause | MessageKind::Resume => None,
                _ => {
                    waiting.push(incoming);
                    continue;
                }
            };
            draft.consume(&incoming, Verdict::Applied);
            // A pause before the first turn has no history to stand in; the row alone carries it.
            match kind {
                Some(kind) if self.state.last_event_id.0 > 0 => {
                    self.state.paused = matches!(kind, EventKind::OrchestrationPaused);
                    let id = Some(incoming.message.id);
                    self.record_outside_code(draft, NewEvent { source: None, message: id, kind });
                }
                Some(kind) => self.state.paused = matches!(kind, EventKind::OrchestrationPaused),
                None => {}
            }
        }
        if self.state.paused {
            self.state.waits = "paused".to_owned();
            self.state.wake_at = None;
            self.hold(&mut draft.turn, std::mem::take(&mut waiting));
        }
        waiting
    }

    /// Appends an event that the code does not see, keeping the code's numbering in step.
    pub(crate) fn record_outside_code(&mut self, draft: &mut Draft, event: NewEvent) {
        let event_id = self.append(draft, event);
        if let Some(execution) = &self.execution {
            execution.journal.lock().next_event = event_id.next();
        } else {
            let (_, event) = draft.turn.events.last().cloned().expect("appended just now");
            self.cold.push(event);
        }
    }

    /// Makes the live future, from history or from the start message. If the history is only a copy, returns what its last poll
    /// came to: the copied instance decided that, and now it is decided here.
    fn revive(
        &mut self,
        draft: &mut Draft,
        messages: &[Incoming],
        handlers: &dyn Handlers,
    ) -> Result<Option<Polled>, (String, Option<String>)> {
        let first = self.cold.first().cloned();
        let started = match first {
            Some(started) => started,
            None => {
                let Some((start, id)) = messages.iter().find_map(start_of) else { return Ok(None) };
                let (version, _) = handlers
                    .resolve(&start.name, start.version.as_deref())
                    .ok_or_else(|| (start.name.clone(), start.version.clone()))?;
                let kind = started_event(start, version, draft.seed, &self.limits);
                self.append(draft, NewEvent { source: None, message: Some(id), kind });
                draft.turn.events.last().map(|(_, event)| event.clone()).expect("appended just now")
            }
        };
        let EventKind::OrchestrationStarted { name, version, .. } = &started.kind else {
            self.end_failed(draft, ErrorDetails::nondeterminism("", "the history does not begin with a start"));
            return Ok(None);
        };
        let (_, handler) =
            handlers.resolve(name, Some(version)).ok_or_else(|| (name.clone(), Some(version.clone())))?;
        let host = Host { handler, limits: &self.limits, outside_wake: self.outside.clone() };
        let Some(mut execution) = Execution::begin(&self.id, self.state.execution, &started, host) else {
            return Ok(None);
        };
        execution.shows_data = self.shows_data;
        execution.journal.lock().turn_seed = draft.seed;
        match execution.replay(&self.cold) {
            Ok(polled) => {
                let is_copy = execution.begun && execution.is_copy_of(&self.cold);
                self.cold = Vec::new();
                self.heartbeats.keep_only(&execution.journal.lock().retried);
                self.execution = Some(execution);
                return Ok(is_copy.then_some(polled));
            }
            Err(divergence) => {
                let details = ErrorDetails::nondeterminism(&self.state.orchestration, divergence.message());
                self.end_failed(draft, details);
            }
        }
        Ok(None)
    }

    fn run(&mut self, draft: &mut Draft, messages: Vec<Incoming>, handlers: &dyn Handlers) {
        self.state.stalled = 0;
        if let Some(execution) = &self.execution {
            execution.journal.lock().turn_seed = draft.seed;
            if execution.woken_from_outside() {
                let hint = "something outside of the history woke the code: use ctx.schedule_timer instead of sleep, \
                            an activity instead of I/O";
                self.end_failed(draft, ErrorDetails::nondeterminism(&self.state.orchestration, hint));
            }
        }
        if self.execution.as_ref().is_some_and(|execution| !execution.begun) && self.is_running(draft) {
            self.poll_first(draft, handlers);
        }
        self.fire_timers(draft, handlers);
        self.serve_queues(draft, handlers);
        for incoming in messages {
            let direct = incoming.seq.is_none().then(|| incoming.message.id.clone());
            let verdict = self.apply(draft, incoming, handlers);
            draft.turn.verdicts.extend(direct.map(|id| (id, verdict)));
            self.serve_queues(draft, handlers);
        }
    }

    /// Whether the execution that the turn began with is still the live one.
    fn is_running(&self, draft: &Draft) -> bool {
        self.state.status == InstanceStatus::Running && self.state.execution == draft.turn.expected.execution
    }

    fn poll_first(&mut self, draft: &mut Draft, handlers: &dyn Handlers) {
        let Some(execution) = self.execution.as_mut() else { return };
        let polled = execution.poll();
        self.after_poll(draft, polled, handlers);
    }

    fn fire_timers(&mut self, draft: &mut Draft, handlers: &dyn Handlers) {
        while self.is_running(draft) {
            let due = self.execution.as_ref().and_then(|execution| execution.next_due_timer(draft.now));
            let Some((id, at)) = due else { return };
            self.deliver(draft, NewEvent::about(id, EventKind::TimerFired { fire_at_ms: at.0 }), handlers);
        }
    }

    fn apply(&mut self, draft: &mut Draft, incoming: Incoming, handlers: &dyn Handlers) -> Verdict {
        let running = self.is_running(draft);
        if let (MessageKind::Enqueue { queue, .. }, Some(seq)) = (&incoming.message.kind, incoming.seq) {
            if self.state.status == InstanceStatus::Running {
                let waiting = self.queues.entry(queue.clone()).or_default();
                // A row may be read twice, and a row with a lower number may become visible later, as senders commit in any
                // order. So its number decides its place, as it does when the inbox is read from the beginning.
                if let Err(place) = waiting.binary_search_by_key(&seq, |(seq, _)| *seq) {
                    waiting.insert(place, (seq, incoming.message));
                }
            }
            return Verdict::Applied;
        }
        draft.turn.consumed.extend(incoming.seq);
        if !running || self.execution.is_none() {
            return Verdict::AlreadyDone;
        }
        let id = incoming.message.id;
        match incoming.message.kind {
            MessageKind::Raise { name, data } => {
                let source = self.live().journal.lock().waits.get(&name).and_then(|ids| ids.first().copied());
                let Some(source) = source else { return Verdict::AlreadyDone };
                let kind = EventKind::ExternalEvent { name, data };
                self.deliver(draft, NewEvent { source: Some(source), message: Some(id), kind }, handlers);
                Verdict::Applied
            }
            MessageKind::ActivityDone { execution, event, token, outcome, run } => {
                let kind = match outcome {
                    Ok(result) => EventKind::ActivityCompleted { result, run },
                    Err(details) => EventKind::ActivityFailed { details, run },
                };
                let message = incoming.seq.map(|_| id);
                let result = NewEvent { source: Some(event), message, kind };
                self.settle(draft, Awaited { execution, event, token }, result, handlers)
            }
            MessageKind::ChildDone { execution, event, token, result } => {
                let kind = match result {
                    Ok(result) => EventKind::SubOrchestrationCompleted { result },
                    Err(details) => EventKind::SubOrchestrationFailed { details },
                };
                let result = NewEvent { source: Some(event), message: Some(id), kind };
                self.settle(draft, Awaited { execution, event, token }, result, handlers)
            }
            MessageKind::Start(_)
            | MessageKind::Replace(_)
            | MessageKind::Enqueue { .. }
            | MessageKind::Cancel { .. }
            | MessageKind::Pause
            | MessageKind::Resume => Verdict::Applied,
        }
    }

    /// Applies the outcome of an activity or child, if this execution waits for it under this token.
    fn settle(
        &mut self,
        draft: &mut Draft,
        Awaited { execution, event, token }: Awaited,
        result: NewEvent,
        handlers: &dyn Handlers,
    ) -> Verdict {
        if execution != self.state.execution {
            return if execution < self.state.execution { Verdict::AlreadyDone } else { Verdict::Unknown };
        }
        match self.live().open_token(event) {
            None if event <= self.state.last_event_id => Verdict::AlreadyDone,
            None => Verdict::Unknown,
            Some(expected) if expected != token => Verdict::Unknown,
            Some(_) => {
                self.children.remove(&event);
                self.deliver(draft, result, handlers);
                Verdict::Applied
            }
        }
    }

    fn serve_queues(&mut self, draft: &mut Draft, handlers: &dyn Handlers) {
        while self.is_running(draft) {
            let Some(execution) = &self.execution else { return };
            if draft.queue_bytes >= crate::TURN_MESSAGE_BYTES_MAX {
                draft.turn.again = true;
                return;
            }
            let served = {
                let journal = execution.journal.lock();
                let (wanted, there) = (&journal.dequeues, &self.queues);
                // Either may be long while the other is short.
                let served = if wanted.len() <= there.len() {
                    wanted.keys().filter(|queue| there.contains_key(*queue)).collect::<Vec<_>>()
                } else {
                    there.keys().filter(|queue| wanted.contains_key(*queue)).collect()
                };
                let first =
                    |queue: &String| wanted.get(queue).and_then(|ids| ids.first()).map(|id| (*id, queue.clone()));
                served.into_iter().filter_map(first).min()
            };
            let Some((source, queue)) = served else { return };
            let Some((seq, message)) = self.queues.get_mut(&queue).and_then(VecDeque::pop_front) else { return };
            if self.queues.get(&queue).is_some_and(VecDeque::is_empty) {
                self.queues.remove(&queue);
            }
            draft.turn.consumed.push(seq);
            draft.queue_bytes += message.payload_bytes();
            let MessageKind::Enqueue { data, .. } = message.kind else { continue };
            let kind = EventKind::QueueEventDelivered { name: queue, data };
            self.deliver(draft, NewEvent { source: Some(source), message: Some(message.id), kind }, handlers);
        }
    }

    /// Appends an outcome, lets the code run, and takes over what it asked for.
    fn deliver(&mut self, draft: &mut Draft, event: NewEvent, handlers: &dyn Handlers) {
        self.append(draft, event);
        let (_, event) = draft.turn.events.last().cloned().expect("appended just now");
        let Some(execution) = self.execution.as_mut() else { return };
        match execution.apply(&event) {
            Ok(polled) => self.after_poll(draft, polled, handlers),
            Err(details) => self.end_failed(draft, details),
        }
    }

    fn after_poll(&mut self, draft: &mut Draft, polled: Polled, handlers: &dyn Handlers) {
        let Some(execution) = self.execution.as_mut() else { return };
        let (commands, polled) = (execution.take_commands(), execution.end_of(polled));
        if let Err(details) = self.check_bytes(&commands) {
            return self.end_failed(draft, details);
        }
        for command in commands {
            self.record(draft, command);
        }
        match polled {
            Polled::Waiting
                if self.state.last_event_id.0 >= self.limits.history_events_max
                    || self.state.history_bytes >= self.limits.history_bytes_max =>
            {
                let text = format!(
                    "the history has {} events and {} bytes, the limits are {} (history_events_max) and {} \
                     (history_bytes_max): use continue-as-new",
                    self.state.last_event_id,
                    self.state.history_bytes,
                    self.limits.history_events_max,
                    self.limits.history_bytes_max
                );
                self.end_failed(draft, ErrorDetails::application(crate::AppErrorKind::OrchestrationFailed, text));
            }
            Polled::Waiting => {}
            Polled::Returned(Ok(output)) => self.end_completed(draft, output),
            Polled::Returned(Err(message)) => {
                let details = ErrorDetails::application(crate::AppErrorKind::OrchestrationFailed, message);
                self.end_failed(draft, details);
            }
            Polled::NextExecution => self.continue_as_new(draft, handlers),
            Polled::Failed(details) => self.end_failed(draft, details),
        }
    }

    pub(crate) fn live(&self) -> &Execution {
        self.execution.as_ref().expect("only asked while an execution runs")
    }

    pub(crate) fn expected(&self) -> crate::Expected {
        crate::Expected { execution: self.state.execution, last_event_id: self.state.last_event_id }
    }

    fn decided(&mut self, draft: Draft) -> Decision {
        Decision::Turn(Box::new(self.finish(draft)))
    }
}

fn start_of(incoming: &Incoming) -> Option<(&StartMessage, MessageId)> {
    match &incoming.message.kind {
        MessageKind::Start(start) => Some((start, incoming.message.id.clone())),
        _ => None,
    }
}
