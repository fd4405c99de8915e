//! The polled future of one execution, and how it follows a history.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::journal::{Command, Identity, Journal, KvValue, OpKind, Outcome, Runaway};
use crate::registry::OrchestrationFuture;
use crate::{
    Carried, ErrorDetails, EventId, EventKind, ExecutionId, HistoryEvent, InstanceId, Limits, Millis,
    OrchestrationContext, OrchestrationHandler, ParentLink, Token,
};

/// A poll that wakes itself so often makes no progress.
const SELF_WAKES_MAX: u32 = 1_000_000;

/// One execution with its live future.
pub(crate) struct Execution {
    pub(crate) journal: Arc<Journal>,
    pub(crate) parent: Option<ParentLink>,
    pub(crate) traceparent: Option<String>,
    future: Option<OrchestrationFuture>,
    wake: Arc<TurnWake>,
    waker: Waker,
    /// The first poll has been made.
    pub(crate) begun: bool,
}

impl Drop for Execution {
    fn drop(&mut self) {
        self.drop_future();
    }
}

/// What a poll came to.
#[derive(Debug, PartialEq)]
pub(crate) enum Polled {
    Waiting,
    Returned(Result<String, String>),
    NextExecution,
    Failed(ErrorDetails),
}

/// Where history and code part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Divergence {
    pub(crate) at: EventId,
    pub(crate) expected: String,
    pub(crate) actual: String,
}

impl Divergence {
    pub(crate) fn message(&self) -> String {
        format!(
            "event {}: history has {}, the code did {}; run the version that made this history, or register the change under a new version",
            self.at, self.expected, self.actual
        )
    }
}

/// Called at most once per execution, when something other than a turn wakes its code.
pub type OutsideWake = Arc<dyn Fn() + Send + Sync>;

struct TurnWake {
    inside: AtomicBool,
    woken: AtomicBool,
    foreign: AtomicBool,
    tell: Option<OutsideWake>,
}

impl Wake for TurnWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.inside.load(Ordering::Relaxed) {
            self.woken.store(true, Ordering::Relaxed);
        } else if !self.foreign.swap(true, Ordering::Relaxed)
            && let Some(tell) = &self.tell
        {
            tell();
        }
    }
}

impl Execution {
    /// An execution that has its first event and was not polled yet. `None` when the event is not a start.
    pub(crate) fn begin(
        instance: &InstanceId,
        execution: ExecutionId,
        started: &HistoryEvent,
        (handler, limits, tell): (OrchestrationHandler, &Arc<Limits>, Option<OutsideWake>),
    ) -> Option<Self> {
        let EventKind::OrchestrationStarted { name, version, input, seed, rules, traceparent, carried, .. } =
            &started.kind
        else {
            return None;
        };
        let identity = Identity {
            instance: instance.clone(),
            execution,
            orchestration: name.clone(),
            version: version.clone(),
            seed: *seed,
            rules: *rules,
        };
        let journal = Journal::new(identity, Arc::clone(limits));
        journal.lock().inherit(carried, started);
        let wake = Arc::new(TurnWake {
            inside: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            foreign: AtomicBool::new(false),
            tell,
        });
        let context = OrchestrationContext::new(Arc::clone(&journal));
        let input = input.clone();
        // The user's function may do things before its first await; an async block puts them into the first poll.
        let future = Box::pin(async move { handler(context, input).await });
        Some(Self {
            journal,
            parent: parent_link(&started.kind),
            traceparent: traceparent.clone(),
            future: Some(future),
            waker: Waker::from(Arc::clone(&wake)),
            wake,
            begun: false,
        })
    }

    /// Whether something other than a message woke the future since the last turn.
    pub(crate) fn woken_from_outside(&self) -> bool {
        self.wake.foreign.load(Ordering::Relaxed)
    }

    /// Lets the code run until it waits.
    pub(crate) fn poll(&mut self) -> Polled {
        self.begun = true;
        let Some(future) = self.future.as_mut() else { return Polled::Waiting };
        self.journal.lock().polling = true;
        self.wake.inside.store(true, Ordering::Relaxed);
        let mut context = Context::from_waker(&self.waker);
        let mut rounds = 0;
        let result = loop {
            self.wake.woken.store(false, Ordering::Relaxed);
            match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context))) {
                Ok(Poll::Pending) if self.wake.woken.load(Ordering::Relaxed) && rounds < SELF_WAKES_MAX => rounds += 1,
                other => break other,
            }
        };
        self.wake.inside.store(false, Ordering::Relaxed);
        let polled = self.settle(result, rounds);
        if polled != Polled::Waiting {
            // Drops inside of the code must not look like decisions, so the journal is closed first.
            self.drop_future();
        }
        polled
    }

    /// Code may panic while its values are dropped. It has nothing to say any more, so nothing follows from that.
    fn drop_future(&mut self) {
        let future = self.future.take();
        if catch_unwind(AssertUnwindSafe(|| drop(future))).is_err() {
            self.journal.lock().polling = false;
        }
    }

    fn settle(&self, result: Result<Poll<Result<String, String>>, Box<dyn Any + Send>>, rounds: u32) -> Polled {
        let mut state = self.journal.lock();
        state.polling = false;
        if let Some(fault) = state.fault.take() {
            return Polled::Failed(fault);
        }
        let hint = |text: &str| Polled::Failed(ErrorDetails::nondeterminism(&state.identity.orchestration, text));
        match result {
            Err(panic) => Polled::Failed(ErrorDetails::application(crate::AppErrorKind::Panicked, panic_text(&panic))),
            Ok(_) if state.next_execution.is_some() => Polled::NextExecution,
            Ok(Poll::Ready(output)) => Polled::Returned(output),
            Ok(Poll::Pending) if rounds >= SELF_WAKES_MAX => {
                hint("the code wakes itself without end: await durable futures only")
            }
            Ok(Poll::Pending) if !state.has_outstanding() => hint(
                "the code waits, but for nothing durable: use ctx.schedule_timer instead of sleep, an activity instead of I/O",
            ),
            Ok(Poll::Pending) => Polled::Waiting,
        }
    }

    /// Brings the outcome of an operation to the code and lets it run.
    pub(crate) fn apply(&mut self, event: &HistoryEvent) -> Result<Polled, ErrorDetails> {
        let Some(source) = event.source_event_id else { return Ok(Polled::Waiting) };
        let outcome = outcome_of(&event.kind);
        self.wake.inside.store(true, Ordering::Relaxed);
        let mut state = self.journal.lock();
        state.now = event.at;
        state.next_event = event.event_id.next();
        // Also an outcome that the code never sees settles its operation.
        let seen = outcome.as_ref().ok().cloned().flatten().unwrap_or(Outcome::Done);
        state.complete(source, event.event_id, seen);
        drop(state);
        outcome.map(|_| self.poll())
    }

    /// Follows a stored history to its end. The last poll of a history that is only its start is left to the turn.
    pub(crate) fn replay(&mut self, history: &[HistoryEvent]) -> Result<Polled, Divergence> {
        let mut rest = history.get(1..).unwrap_or_default();
        // A pause before the first poll: code that waits has always asked for something first.
        while let Some((event, after)) = rest.split_first().filter(|(event, _)| is_pause_or_resume(&event.kind)) {
            self.journal.lock().next_event = event.event_id.next();
            rest = after;
        }
        if rest.is_empty() {
            return Ok(Polled::Waiting);
        }
        self.journal.lock().replaying = true;
        let mut polled = self.poll();
        rest = self.follow_commands(rest)?;
        while let Some((event, after)) = rest.split_first() {
            match &event.kind {
                kind if is_pause_or_resume(kind) => {
                    self.journal.lock().next_event = event.event_id.next();
                    rest = after;
                }
                EventKind::OrchestrationCancelRequested { .. } => return Ok(polled),
                kind if kind.is_terminal() => return Ok(polled),
                _ if polled != Polled::Waiting => return Err(ended_early(event, &polled)),
                kind if kind.is_command() => return Err(self.unasked(event)),
                _ => {
                    self.check_source(event)?;
                    match self.apply(event) {
                        Ok(next) => polled = next,
                        Err(_) => return Ok(polled),
                    }
                    rest = self.follow_commands(after)?;
                }
            }
        }
        self.journal.lock().replaying = false;
        match polled {
            Polled::Waiting => Ok(polled),
            other => Err(Divergence {
                at: EventId(history.len() as u64 + 1),
                expected: "nothing more: the code waited here".to_owned(),
                actual: describe_end(&other),
            }),
        }
    }

    /// Compares what the code asked for with what stands in the history; returns the history behind it.
    fn follow_commands<'h>(&mut self, history: &'h [HistoryEvent]) -> Result<&'h [HistoryEvent], Divergence> {
        let mut state = self.journal.lock();
        let commands = std::mem::take(&mut state.commands);
        for (index, command) in commands.iter().enumerate() {
            let Some(recorded) = history.get(index) else {
                let expected = "nothing more".to_owned();
                return Err(Divergence { at: command.id, expected, actual: describe(&command.kind) });
            };
            if recorded.source_event_id != command.source || recorded.kind.comparable() != command.kind.comparable() {
                return Err(Divergence {
                    at: recorded.event_id,
                    expected: describe(&recorded.kind),
                    actual: describe(&command.kind),
                });
            }
            state.adopt(command.id, &recorded.kind);
        }
        Ok(&history[commands.len()..])
    }

    fn check_source(&self, event: &HistoryEvent) -> Result<(), Divergence> {
        let source = event.source_event_id.unwrap_or(EventId(0));
        if self.journal.lock().open_kind(source).is_some() {
            return Ok(());
        }
        Err(Divergence {
            at: event.event_id,
            expected: format!("{} for event {source}", describe(&event.kind)),
            actual: "nothing that could take it".to_owned(),
        })
    }

    fn unasked(&self, event: &HistoryEvent) -> Divergence {
        let actual = "nothing of that kind: it waits".to_owned();
        Divergence { at: event.event_id, expected: describe(&event.kind), actual }
    }

    /// The commands of the last poll.
    pub(crate) fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.journal.lock().commands)
    }

    /// Timers up to `now`, in the order in which they fire.
    pub(crate) fn next_due_timer(&self, now: Millis) -> Option<(EventId, Millis)> {
        let state = self.journal.lock();
        state.timers.first().filter(|(at, _)| *at <= now).map(|(at, id)| (*id, *at))
    }

    /// The token of an activity or child that has no outcome yet.
    pub(crate) fn open_token(&self, id: EventId) -> Option<Token> {
        match self.journal.lock().open_kind(id)? {
            OpKind::Activity { token } | OpKind::Child { token, .. } => Some(*token),
            OpKind::Timer { .. } | OpKind::Wait { .. } | OpKind::Dequeue { .. } => None,
        }
    }
}

impl crate::journal::JournalState {
    fn inherit(&mut self, carried: &Carried, started: &HistoryEvent) {
        self.now = started.at;
        self.next_event = started.event_id.next();
        self.custom_status.clone_from(&carried.custom_status);
        self.custom_status_version = carried.custom_status_version;
        for entry in &carried.kv {
            let value = KvValue { value: entry.value.clone(), updated: Millis(entry.last_updated_at_ms) };
            self.kv.insert(entry.key.clone(), value);
        }
    }
}

/// What the awaiting code gets; failures that are not the application's end the instance instead.
fn outcome_of(kind: &EventKind) -> Result<Option<Outcome>, ErrorDetails> {
    Ok(Some(match kind {
        EventKind::ActivityCompleted { result, .. } | EventKind::SubOrchestrationCompleted { result } => {
            Outcome::Text(result.clone())
        }
        EventKind::ActivityFailed { details, .. } | EventKind::SubOrchestrationFailed { details } => match details {
            ErrorDetails::Application { .. } => Outcome::Error(details.display_message()),
            ErrorDetails::Infrastructure { .. } | ErrorDetails::Configuration { .. } | ErrorDetails::Poison { .. } => {
                return Err(details.clone());
            }
        },
        EventKind::TimerFired { .. } => Outcome::Done,
        EventKind::ExternalEvent { data, .. } | EventKind::QueueEventDelivered { data, .. } => {
            Outcome::Text(data.clone())
        }
        _ => return Ok(None),
    }))
}

pub(crate) fn parent_link(kind: &EventKind) -> Option<ParentLink> {
    match kind {
        EventKind::OrchestrationStarted {
            parent_instance: Some(instance),
            parent_id: Some(event),
            parent_execution,
            parent_token,
            ..
        } => Some(ParentLink {
            instance: InstanceId::new(instance),
            execution: ExecutionId(parent_execution.unwrap_or(1)),
            event: EventId(*event),
            token: parent_token.unwrap_or_default(),
        }),
        _ => None,
    }
}

fn is_pause_or_resume(kind: &EventKind) -> bool {
    matches!(kind, EventKind::OrchestrationPaused | EventKind::OrchestrationResumed)
}

fn ended_early(event: &HistoryEvent, polled: &Polled) -> Divergence {
    Divergence { at: event.event_id, expected: describe(&event.kind), actual: describe_end(polled) }
}

fn describe_end(polled: &Polled) -> String {
    match polled {
        Polled::Waiting => "waiting".to_owned(),
        Polled::Returned(_) => "the end: it returned".to_owned(),
        Polled::NextExecution => "continue-as-new".to_owned(),
        Polled::Failed(details) => format!("the end: {}", details.display_message()),
    }
}

/// One line about an event, with what replay compares.
pub(crate) fn describe(kind: &EventKind) -> String {
    match kind {
        EventKind::ActivityScheduled { name, input, session_id, tag, .. } => {
            format!("activity {name:?} (input {:?}, session {session_id:?}, tag {tag:?})", cut(input))
        }
        EventKind::SubOrchestrationScheduled { name, input, instance, .. } => {
            format!("child {name:?} as {instance:?} (input {:?})", cut(input))
        }
        EventKind::OrchestrationChained { name, instance, input, .. } => {
            format!("detached start of {name:?} as {instance:?} (input {:?})", cut(input))
        }
        EventKind::TimerCreated { .. } => "a timer".to_owned(),
        EventKind::ExternalSubscribed { name } => format!("a wait for event {name:?}"),
        EventKind::QueueSubscribed { name } => format!("a dequeue from {name:?}"),
        EventKind::KeyValueSet { key, value, .. } => format!("KV {key:?} = {:?}", cut(value)),
        EventKind::KeyValueCleared { key } => format!("clearing KV {key:?}"),
        EventKind::CustomStatusUpdated { status } => format!("custom status {:?}", status.as_deref().map(cut)),
        other => {
            let text = format!("{other:?}");
            text.split([' ', '{']).next().unwrap_or_default().to_owned()
        }
    }
}

fn cut(text: &str) -> String {
    const SHOWN: usize = 120;
    if text.chars().count() <= SHOWN {
        text.to_owned()
    } else {
        text.chars().take(SHOWN).chain("…".chars()).collect()
    }
}

fn panic_text(panic: &Box<dyn Any + Send>) -> String {
    if panic.is::<Runaway>() {
        return "runaway turn".to_owned();
    }
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panicked without a message".to_owned())
}
