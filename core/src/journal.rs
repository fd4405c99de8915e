//! What orchestration code and the turn share: open operations, commands of the running poll, and replayed state.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::{
    ErrorDetails, EventId, EventKind, ExecutionId, InstanceId, Limits, LogLevel, LogLine, Millis, Rules, Token,
};

/// The journal of one execution. Cheap to lock: it is only ever used by the one thread that polls.
pub(crate) struct Journal {
    inner: Mutex<JournalState>,
}

/// Who this execution is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) instance: InstanceId,
    pub(crate) execution: ExecutionId,
    pub(crate) orchestration: String,
    pub(crate) version: String,
    pub(crate) seed: u64,
    pub(crate) rules: Rules,
}

/// Something that orchestration code asked for in the running poll.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) id: EventId,
    pub(crate) source: Option<EventId>,
    pub(crate) kind: EventKind,
}

/// What an operation stands for while it has no outcome.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum OpKind {
    Activity { token: Token },
    Timer { fire_at: Millis },
    Wait { name: String },
    Dequeue { queue: String },
    Child { instance: InstanceId, token: Token },
}

/// How an operation ended, as the awaiting code gets it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Done,
    Text(String),
    Error(String),
}

struct Op {
    kind: OpKind,
    ready: Option<(EventId, Outcome)>,
    waker: Option<Waker>,
}

/// The next execution that the code asked for.
#[derive(Clone, Debug)]
pub(crate) struct NextExecution {
    pub(crate) version: Option<String>,
    pub(crate) input: String,
}

/// A value of the key-value state.
#[derive(Clone, Debug)]
pub(crate) struct KvValue {
    pub(crate) value: String,
    pub(crate) updated: Millis,
}

/// Thrown through the poll of code that never stops asking; `fault` says what went wrong.
pub(crate) struct Runaway;

pub(crate) struct JournalState {
    pub(crate) identity: Identity,
    pub(crate) limits: Arc<Limits>,
    /// Only inside a poll may code command; drops at any other time emit nothing.
    pub(crate) polling: bool,
    pub(crate) replaying: bool,
    pub(crate) now: Millis,
    pub(crate) turn_seed: u64,
    pub(crate) next_event: EventId,
    pub(crate) commands: Vec<Command>,
    pub(crate) logs: Vec<LogLine>,
    pub(crate) fault: Option<ErrorDetails>,
    pub(crate) next_execution: Option<NextExecution>,
    pub(crate) kv: BTreeMap<String, KvValue>,
    pub(crate) custom_status: Option<String>,
    pub(crate) custom_status_version: u64,
    pub(crate) guids: u64,
    pub(crate) open_activities: u32,
    pub(crate) timers: BTreeSet<(Millis, EventId)>,
    pub(crate) waits: BTreeMap<String, VecDeque<EventId>>,
    pub(crate) dequeues: BTreeMap<String, VecDeque<EventId>>,
    /// Activities that are being tried by a retry policy, by the scheduling event of their first attempt.
    pub(crate) retried: BTreeSet<EventId>,
    open_ops: usize,
    ops: BTreeMap<EventId, Op>,
    /// Completed and not yet taken: (completion, operation).
    ready: BTreeSet<(EventId, EventId)>,
    /// While a select looks for its winner, completions after this one are not visible.
    horizon: Option<EventId>,
    /// Operations that were polled and held back by the horizon.
    held_back: Vec<EventId>,
}

impl Journal {
    pub(crate) fn new(identity: Identity, limits: Arc<Limits>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(JournalState {
                identity,
                limits,
                polling: false,
                replaying: false,
                now: Millis(0),
                turn_seed: 0,
                next_event: EventId(1),
                commands: Vec::new(),
                logs: Vec::new(),
                fault: None,
                next_execution: None,
                kv: BTreeMap::new(),
                custom_status: None,
                custom_status_version: 0,
                guids: 0,
                open_activities: 0,
                timers: BTreeSet::new(),
                waits: BTreeMap::new(),
                dequeues: BTreeMap::new(),
                retried: BTreeSet::new(),
                open_ops: 0,
                ops: BTreeMap::new(),
                ready: BTreeSet::new(),
                horizon: None,
                held_back: Vec::new(),
            }),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, JournalState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a command of the code and returns its event id.
    ///
    /// # Panics
    /// When called outside a turn: the context must not leave its orchestration.
    pub(crate) fn emit(&self, source: Option<EventId>, kind: EventKind) -> EventId {
        let mut state = self.lock();
        let polling = state.polling;
        let runaway = state.commands.len() >= state.limits.commands_per_turn_max;
        if polling && !runaway {
            return state.push_command(source, kind);
        }
        if runaway {
            let max = state.limits.commands_per_turn_max;
            state.fault = Some(ErrorDetails::application(
                crate::AppErrorKind::OrchestrationFailed,
                format!(
                    "one turn asked for more than {max} things (commands_per_turn_max): await some, or continue as new"
                ),
            ));
            drop(state);
            std::panic::resume_unwind(Box::new(Runaway));
        }
        drop(state);
        panic!(
            "an orchestration context was used outside its orchestration's own future (in a spawned task or thread)"
        );
    }

    /// Records a command that opens an operation.
    pub(crate) fn open(&self, kind: EventKind, op: OpKind) -> EventId {
        let id = self.emit(None, kind);
        self.lock().open_op(id, op);
        id
    }

    /// Runs `attempt` so that a ready result wins over another whose completion came later in history.
    ///
    /// Completions become visible one after the other, in their order, as far as `attempt` looks at them.
    pub(crate) fn in_completion_order<T>(&self, mut attempt: impl FnMut() -> Poll<T>) -> Poll<T> {
        let outer = {
            let mut state = self.lock();
            let outer = state.horizon;
            if state.ready_count_up_to(outer) < 2 {
                drop(state);
                return attempt();
            }
            state.horizon = Some(EventId(0));
            outer
        };
        let mut held = Vec::new();
        loop {
            let result = attempt();
            let mut state = self.lock();
            held.append(&mut state.held_back);
            let next = if result.is_ready() { None } else { state.next_visible(&held, outer) };
            let (horizon, wakers) = match next {
                Some(completion) => (Some(completion), state.wakers(&held, completion)),
                None => (outer, state.wakers(&held, EventId(u64::MAX))),
            };
            state.horizon = horizon;
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
            if next.is_none() {
                return result;
            }
        }
    }
}

impl JournalState {
    fn push_command(&mut self, source: Option<EventId>, kind: EventKind) -> EventId {
        let id = self.next_event;
        self.next_event = id.next();
        self.commands.push(Command { id, source, kind });
        id
    }

    fn open_op(&mut self, id: EventId, kind: OpKind) {
        match &kind {
            OpKind::Activity { .. } => self.open_activities += 1,
            OpKind::Timer { fire_at } => {
                self.timers.insert((*fire_at, id));
            }
            OpKind::Wait { name } => self.waits.entry(name.clone()).or_default().push_back(id),
            OpKind::Dequeue { queue } => self.dequeues.entry(queue.clone()).or_default().push_back(id),
            OpKind::Child { .. } => {}
        }
        self.open_ops += 1;
        self.ops.insert(id, Op { kind, ready: None, waker: None });
    }

    /// Takes the operation out of the indexes of what is outstanding.
    fn close_index(&mut self, id: EventId, kind: &OpKind) {
        self.open_ops -= 1;
        match kind {
            OpKind::Activity { .. } => self.open_activities -= 1,
            OpKind::Timer { fire_at } => {
                self.timers.remove(&(*fire_at, id));
            }
            OpKind::Wait { name } => remove_subscription(&mut self.waits, name, id),
            OpKind::Dequeue { queue } => remove_subscription(&mut self.dequeues, queue, id),
            OpKind::Child { .. } => {}
        }
    }

    /// The kind of an operation that has no outcome yet.
    pub(crate) fn open_kind(&self, id: EventId) -> Option<&OpKind> {
        self.ops.get(&id).filter(|op| op.ready.is_none()).map(|op| &op.kind)
    }

    /// All operations without an outcome, in the order of their scheduling.
    pub(crate) fn outstanding(&self) -> Vec<(EventId, OpKind)> {
        self.ops.iter().filter(|(_, op)| op.ready.is_none()).map(|(id, op)| (*id, op.kind.clone())).collect()
    }

    /// The oldest operation without an outcome.
    pub(crate) fn first_outstanding(&self) -> Option<(EventId, OpKind)> {
        self.ops.iter().find(|(_, op)| op.ready.is_none()).map(|(id, op)| (*id, op.kind.clone()))
    }

    pub(crate) fn has_outstanding(&self) -> bool {
        self.open_ops > 0
    }

    /// Replaces what a replayed command could not know: the recorded token or due time.
    pub(crate) fn adopt(&mut self, id: EventId, recorded: &EventKind) {
        if let EventKind::CustomStatusUpdated { status } = recorded {
            self.custom_status.clone_from(status);
        }
        let Some(op) = self.ops.get_mut(&id) else { return };
        match (&mut op.kind, recorded) {
            (OpKind::Activity { token }, EventKind::ActivityScheduled { token: stored, .. })
            | (OpKind::Child { token, .. }, EventKind::SubOrchestrationScheduled { token: stored, .. }) => {
                *token = *stored
            }
            (OpKind::Timer { fire_at }, EventKind::TimerCreated { fire_at_ms }) => {
                let stored = Millis(*fire_at_ms);
                if op.ready.is_none() {
                    self.timers.remove(&(*fire_at, id));
                    self.timers.insert((stored, id));
                }
                *fire_at = stored;
            }
            _ => {}
        }
    }

    /// Gives an operation its outcome; `false` when it has one already or is gone.
    pub(crate) fn complete(&mut self, id: EventId, completion: EventId, outcome: Outcome) -> bool {
        let Some(op) = self.ops.get_mut(&id).filter(|op| op.ready.is_none()) else { return false };
        op.ready = Some((completion, outcome));
        let waker = op.waker.take();
        let kind = op.kind.clone();
        self.close_index(id, &kind);
        self.ready.insert((completion, id));
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// The outcome for a future that is polled; keeps the waker when there is none yet.
    pub(crate) fn poll_op(&mut self, id: EventId, waker: &Waker) -> Poll<Outcome> {
        let horizon = self.horizon;
        let op = self.ops.get_mut(&id).expect("a durable future's operation lives as long as the future");
        match &op.ready {
            Some((completion, _)) if horizon.is_none_or(|last| *completion <= last) => {
                let completion = *completion;
                self.ready.remove(&(completion, id));
                let (_, outcome) = self.ops.remove(&id).and_then(|op| op.ready).expect("looked at just now");
                return Poll::Ready(outcome);
            }
            Some(_) => self.held_back.push(id),
            None => {}
        }
        if !op.waker.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
            op.waker = Some(waker.clone());
        }
        Poll::Pending
    }

    /// Forgets the operation of a dropped future; returns its kind when it had no outcome.
    pub(crate) fn forget_op(&mut self, id: EventId) -> Option<OpKind> {
        let op = self.ops.remove(&id)?;
        match op.ready {
            Some((completion, _)) => {
                self.ready.remove(&(completion, id));
                None
            }
            None => {
                self.close_index(id, &op.kind);
                Some(op.kind)
            }
        }
    }

    /// Changes the command that opened an operation, while its poll still runs.
    pub(crate) fn amend(&mut self, id: EventId, change: impl FnOnce(&mut EventKind)) -> bool {
        let Some(command) = self.commands.iter_mut().rev().find(|command| command.id == id) else { return false };
        change(&mut command.kind);
        true
    }

    pub(crate) fn log(&mut self, level: LogLevel, text: String) {
        if !self.replaying {
            self.logs.push(LogLine { level, text });
        }
    }

    fn ready_count_up_to(&self, horizon: Option<EventId>) -> usize {
        let last = horizon.unwrap_or(EventId(u64::MAX));
        self.ready.range(..=(last, EventId(u64::MAX))).take(2).count()
    }

    fn next_visible(&self, held: &[EventId], outer: Option<EventId>) -> Option<EventId> {
        let current = self.horizon.unwrap_or(EventId(u64::MAX));
        held.iter()
            .filter_map(|id| self.ops.get(id).and_then(|op| op.ready.as_ref()).map(|(completion, _)| *completion))
            .filter(|completion| *completion > current && outer.is_none_or(|last| *completion <= last))
            .min()
    }

    fn wakers(&mut self, held: &[EventId], up_to: EventId) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for id in held {
            let visible = |op: &&mut Op| op.ready.as_ref().is_some_and(|(completion, _)| *completion <= up_to);
            wakers.extend(self.ops.get_mut(id).filter(visible).and_then(|op| op.waker.take()));
        }
        wakers
    }
}

fn remove_subscription(index: &mut BTreeMap<String, VecDeque<EventId>>, name: &str, id: EventId) {
    if let Some(ids) = index.get_mut(name) {
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            index.remove(name);
        }
    }
}
