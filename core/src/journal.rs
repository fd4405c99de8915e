//! What orchestration code and the turn share in memory (the durable log is the history): open operations, commands of the running poll, and replayed state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::{
    CodeLimits, ErrorDetails, EventId, EventKind, ExecutionId, ForkPoint, InstanceId, LogLevel, LogLine, Millis, Rules,
    Token,
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
    /// Where its history was copied, in order.
    pub(crate) forks: Vec<ForkPoint>,
}

/// What code is told about itself. In a history that was copied it is what the copied instance was told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told<'a> {
    pub(crate) instance: &'a str,
    pub(crate) execution: ExecutionId,
    pub(crate) seed: u64,
}

impl Identity {
    /// What the code is told about itself when its next command would become event `next`.
    pub(crate) fn told(&self, next: EventId) -> Told<'_> {
        let copied_from = self.forks.iter().find(|fork| next <= fork.at);
        let (instance, execution) = copied_from
            .map_or((self.instance.as_str(), self.execution), |fork| (fork.instance.as_str(), fork.execution));
        let seed = self.forks.iter().rev().find(|fork| fork.at < next).map_or(self.seed, |fork| fork.seed);
        Told { instance, execution, seed }
    }
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

impl Outcome {
    pub(crate) fn into_result(self) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Error(error) => Err(error),
            Self::Done => Ok(String::new()),
        }
    }

    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Error(text) => text,
            Self::Done => String::new(),
        }
    }
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
    pub(crate) limits: CodeLimits,
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
    pub(crate) waits: BTreeMap<String, BTreeSet<EventId>>,
    pub(crate) dequeues: BTreeMap<String, BTreeSet<EventId>>,
    /// Activities that are being tried by a retry policy, by the scheduling event of their first attempt.
    pub(crate) retried: BTreeSet<EventId>,
    ops: BTreeMap<EventId, Op>,
    /// Operations without an outcome.
    open: BTreeSet<EventId>,
    /// Completed and not yet taken: (completion, operation).
    pub(crate) ready: BTreeSet<(EventId, EventId)>,
    /// While a select looks for its winner, completions after this one are not visible.
    pub(crate) horizon: Option<EventId>,
    /// Operations that the horizon held back in the running attempt of a select.
    pub(crate) held_back: Vec<EventId>,
    /// Those of all selects of the running poll, by their completion.
    pub(crate) held: BTreeMap<EventId, EventId>,
}

impl Journal {
    pub(crate) fn new(identity: Identity, limits: CodeLimits) -> Arc<Self> {
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
                ops: BTreeMap::new(),
                open: BTreeSet::new(),
                ready: BTreeSet::new(),
                horizon: None,
                held_back: Vec::new(),
                held: BTreeMap::new(),
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
}

impl JournalState {
    /// What the code is told about itself now.
    pub(crate) fn told(&self) -> Told<'_> {
        self.identity.told(self.next_event)
    }

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
            OpKind::Wait { name } => {
                self.waits.entry(name.clone()).or_default().insert(id);
            }
            OpKind::Dequeue { queue } => {
                self.dequeues.entry(queue.clone()).or_default().insert(id);
            }
            OpKind::Child { .. } => {}
        }
        self.open.insert(id);
        self.ops.insert(id, Op { kind, ready: None, waker: None });
    }

    /// Takes the operation out of the indexes of what is outstanding.
    fn close_index(&mut self, id: EventId, kind: &OpKind) {
        self.open.remove(&id);
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
        self.open.iter().filter_map(|id| self.ops.get(id).map(|op| (*id, op.kind.clone()))).collect()
    }

    /// The oldest operation without an outcome.
    pub(crate) fn first_outstanding(&self) -> Option<(EventId, OpKind)> {
        self.open.first().and_then(|id| self.ops.get(id).map(|op| (*id, op.kind.clone())))
    }

    pub(crate) fn has_outstanding(&self) -> bool {
        !self.open.is_empty()
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
                let stored = Millis(*fire_at_ms).min(Millis::FAR);
                if op.ready.is_none() {
                    self.timers.remove(&(*fire_at, id));
                    self.timers.insert((stored, id));
                }
                *fire_at = stored;
            }
            _ => {}
        }
    }

    /// Gives an operation its outcome, unless it has one already or is gone; returns who waits for it.
    pub(crate) fn complete(&mut self, id: EventId, completion: EventId, outcome: Outcome) -> Option<Waker> {
        let op = self.ops.get_mut(&id).filter(|op| op.ready.is_none())?;
        op.ready = Some((completion, outcome));
        let waker = op.waker.take();
        let kind = op.kind.clone();
        self.close_index(id, &kind);
        self.ready.insert((completion, id));
        waker
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
        // The commands of a poll have ids without a gap.
        let first = self.commands.first().map_or(id.0, |command| command.id.0);
        let position = id.0.checked_sub(first).and_then(|position| usize::try_from(position).ok());
        let command = position.and_then(|position| self.commands.get_mut(position));
        let Some(command) = command.filter(|command| command.id == id) else { return false };
        change(&mut command.kind);
        true
    }

    pub(crate) fn log(&mut self, level: LogLevel, text: String) {
        if !self.replaying {
            self.logs.push(LogLine { level, text });
        }
    }

    /// When an operation that nobody has taken yet was completed.
    pub(crate) fn completion_of(&self, id: EventId) -> Option<EventId> {
        self.ops.get(&id).and_then(|op| op.ready.as_ref()).map(|(completion, _)| *completion)
    }

    /// Takes who waits for an operation.
    pub(crate) fn waker_of(&mut self, id: EventId) -> Option<Waker> {
        self.ops.get_mut(&id).and_then(|op| op.waker.take())
    }
}

fn remove_subscription(index: &mut BTreeMap<String, BTreeSet<EventId>>, name: &str, id: EventId) {
    if let Some(ids) = index.get_mut(name) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(name);
        }
    }
}
