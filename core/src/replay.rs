//! The polled future of one execution, and how it follows a history.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::ids::hash;
use crate::journal::{Command, Identity, Journal, KvValue, OpKind, Outcome, Runaway};
use crate::panics::{drop_caught, panic_text};
use crate::registry::OrchestrationFuture;
use crate::{
    Carried, CodeLimits, ErrorDetails, EventId, EventKind, ExecutionId, HistoryEvent, InstanceId, Limits, Millis,
    OrchestrationContext, OrchestrationHandler, ParentLink, Token,
};

/// A poll that wakes itself so often makes no progress. Code that joins the most activities a turn allows wakes itself a
/// few times for each, far below this; a loop reaches it within a second.
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
    /// Whether what is said about a divergence quotes inputs and values.
    pub(crate) shows_data: bool,
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

/// What an execution runs with.
pub(crate) struct Host<'a> {
    pub(crate) handler: OrchestrationHandler,
    pub(crate) limits: &'a Limits,
    /// Who is told when something outside of the history wakes the code.
    pub(crate) outside_wake: Option<OutsideWake>,
}

impl Execution {
    /// An execution that has its first event and was not polled yet. `None` when the event is not a start.
    pub(crate) fn begin(
        instance: &InstanceId,
        execution: ExecutionId,
        started: &HistoryEvent,
        Host { handler, limits, outside_wake }: Host<'_>,
    ) -> Option<Self> {
        let EventKind::OrchestrationStarted {
            name,
            version,
            input,
            seed,
            traceparent,
            carried,
            rules,
            limits: recorded,
            forks,
            ..
        } = &started.kind
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
            forks: forks.clone(),
        };
        let journal = Journal::new(identity, recorded.unwrap_or_else(|| CodeLimits::of(limits)));
        journal.lock().inherit(carried, started);
        let wake = Arc::new(TurnWake {
            inside: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            foreign: AtomicBool::new(false),
            tell: outside_wake,
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
            shows_data: false,
        })
    }

    /// Whether something other than a message woke the future since the last turn.
    pub(crate) fn woken_from_outside(&self) -> bool {
        self.wake.foreign.load(Ordering::Relaxed)
    }

    /// Lets the code run until it waits.
    pub(crate) fn poll(&mut self) -> Polled {
        self.poll_woken(None)
    }

    /// Wakes what waits for an outcome, then lets the code run. Wakers may be the code's own, so they are called where its
    /// panics are caught.
    fn poll_woken(&mut self, waker: Option<Waker>) -> Polled {
        self.begun = true;
        let Some(future) = self.future.as_mut() else { return Polled::Waiting };
        let journal = &self.journal;
        {
            let mut state = journal.lock();
            state.polling = true;
            // A select whose poll panicked leaves its horizon behind if the code caught the panic.
            state.horizon = None;
        }
        self.wake.inside.store(true, Ordering::Relaxed);
        let mut context = Context::from_waker(&self.waker);
        let mut rounds = 0;
        let woken = catch_unwind(AssertUnwindSafe(|| waker.map_or((), Waker::wake)));
        let result = woken.and_then(|()| {
            loop {
                self.wake.woken.store(false, Ordering::Relaxed);
                match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context))) {
                    Ok(Poll::Pending) if self.wake.woken.load(Ordering::Relaxed) && rounds < SELF_WAKES_MAX => {
                        rounds += 1
                    }
                    // One at a time: a select that comes next finds the others still held back.
                    Ok(Poll::Pending) if rounds < SELF_WAKES_MAX => {
                        match catch_unwind(AssertUnwindSafe(|| journal.wake_next_held())) {
                            Ok(true) => {}
                            Ok(false) => break Ok(Poll::Pending),
                            Err(panic) => break Err(panic),
                        }
                    }
                    other => break other,
                }
            }
        });
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
        drop_caught(self.future.take());
    }

    fn settle(&self, result: Result<Poll<Result<String, String>>, Box<dyn Any + Send>>, rounds: u32) -> Polled {
        // What the code panicked with is dropped here, and may use the context while it is: it decides nothing by that.
        self.journal.lock().polling = false;
        let result = result.map_err(|panic| match panic.is::<Runaway>() {
            true => "runaway turn".to_owned(),
            false => panic_text(panic).unwrap_or_else(|| "panicked without a message".to_owned()),
        });
        let mut state = self.journal.lock();
        if let Some(fault) = state.fault.take() {
            return Polled::Failed(fault);
        }
        let hint = |text: &str| Polled::Failed(ErrorDetails::nondeterminism(&state.identity.orchestration, text));
        match result {
            Err(text) => Polled::Failed(ErrorDetails::application(crate::AppErrorKind::Panicked, text)),
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
        let waker = state.complete(source, event.event_id, seen);
        drop(state);
        match outcome {
            Ok(_) => Ok(self.poll_woken(waker)),
            Err(details) => {
                drop_caught(waker);
                Err(details)
            }
        }
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
                kind if kind.is_terminal() || is_closing(rest) => return Ok(polled),
                _ if polled != Polled::Waiting => return Err(self.ended_early(event, &polled)),
                kind if kind.is_command() => return Err(self.unasked(event)),
                _ => {
                    self.check_source(event)?;
                    polled = self.apply(event).unwrap_or_else(Polled::Failed);
                    rest = self.follow_commands(after)?;
                }
            }
        }
        self.journal.lock().replaying = false;
        match polled {
            Polled::Waiting => Ok(polled),
            other if self.is_copy_of(history) => Ok(other),
            other => Err(Divergence {
                at: EventId(history.len() as u64 + 1),
                expected: "nothing more: the code waited here".to_owned(),
                actual: describe_end(&other, self.shows_data),
            }),
        }
    }

    /// Whether the history is what was copied from another instance, and nothing of its own yet.
    pub(crate) fn is_copy_of(&self, history: &[HistoryEvent]) -> bool {
        let copied = self.journal.lock().identity.forks.last().map(|fork| fork.at);
        copied.is_some() && copied == history.last().map(|event| event.event_id)
    }

    /// Compares what the code asked for with what stands in the history; returns the history behind it.
    fn follow_commands<'h>(&mut self, history: &'h [HistoryEvent]) -> Result<&'h [HistoryEvent], Divergence> {
        let mut state = self.journal.lock();
        let mut commands = std::mem::take(&mut state.commands);
        let copied = state.identity.forks.last().map_or(EventId(0), |fork| fork.at);
        for (index, command) in commands.iter().enumerate() {
            let Some(recorded) = history.get(index) else {
                if command.id == copied.next() {
                    // The copy ends within this poll: from here on the code decides anew.
                    state.commands = commands.split_off(index);
                    return Ok(&[]);
                }
                let expected = "nothing more".to_owned();
                return Err(Divergence { at: command.id, expected, actual: describe(&command.kind, self.shows_data) });
            };
            if recorded.source_event_id != command.source || recorded.kind.comparable() != command.kind.comparable() {
                return Err(Divergence {
                    at: recorded.event_id,
                    expected: describe(&recorded.kind, self.shows_data),
                    actual: describe(&command.kind, self.shows_data),
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
            expected: format!("{} for event {source}", describe(&event.kind, self.shows_data)),
            actual: "nothing that could take it".to_owned(),
        })
    }

    fn unasked(&self, event: &HistoryEvent) -> Divergence {
        let actual = "nothing of that kind: it waits".to_owned();
        Divergence { at: event.event_id, expected: describe(&event.kind, self.shows_data), actual }
    }

    fn ended_early(&self, event: &HistoryEvent, polled: &Polled) -> Divergence {
        let expected = describe(&event.kind, self.shows_data);
        Divergence { at: event.event_id, expected, actual: describe_end(polled, self.shows_data) }
    }

    /// What the code came to, once its output has been checked: one that is too large is a failure.
    pub(crate) fn end_of(&self, polled: Polled) -> Polled {
        let Polled::Returned(Ok(output)) = polled else { return polled };
        let checked = self.journal.lock().limits.check_payload("orchestration output", &output);
        Polled::Returned(checked.map(|()| output).map_err(|refused| refused.to_string()))
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

/// Whether only the end follows: what was still open is cancelled first, without the code having asked for it.
fn is_closing(rest: &[HistoryEvent]) -> bool {
    let Some((last, before)) = rest.split_last() else { return false };
    last.kind.is_terminal() && before.iter().all(|event| event.kind.is_cancel_request())
}

fn describe_end(polled: &Polled, shows_data: bool) -> String {
    match polled {
        Polled::Waiting => "waiting".to_owned(),
        Polled::Returned(_) => "the end: it returned".to_owned(),
        Polled::NextExecution => "continue-as-new".to_owned(),
        Polled::Failed(details) if shows_data => format!("the end: {}", details.display_message()),
        Polled::Failed(details) => format!("the end: it failed ({})", details.category()),
    }
}

/// One line about an event, with what replay compares.
pub(crate) fn describe(kind: &EventKind, shows_data: bool) -> String {
    let cut = |text: &str| if shows_data { format!("{:?}", cut(text)) } else { digest(text) };
    match kind {
        EventKind::ActivityScheduled { name, input, session_id, tag, .. } => {
            format!("activity {name:?} (input {}, session {session_id:?}, tag {tag:?})", cut(input))
        }
        EventKind::SubOrchestrationScheduled { name, input, instance, .. } => {
            format!("child {name:?} as {instance:?} (input {})", cut(input))
        }
        EventKind::OrchestrationChained { name, instance, input, .. } => {
            format!("detached start of {name:?} as {instance:?} (input {})", cut(input))
        }
        EventKind::TimerCreated { .. } => "a timer".to_owned(),
        EventKind::ExternalSubscribed { name } => format!("a wait for event {name:?}"),
        EventKind::QueueSubscribed { name } => format!("a dequeue from {name:?}"),
        EventKind::KeyValueSet { key, value, .. } => format!("KV {key:?} = {}", cut(value)),
        EventKind::KeyValueCleared { key } => format!("clearing KV {key:?}"),
        EventKind::CustomStatusUpdated { status: Some(status) } => format!("custom status {}", cut(status)),
        EventKind::CustomStatusUpdated { status: None } => "no custom status".to_owned(),
        other => {
            let text = format!("{other:?}");
            text.split([' ', '{']).next().unwrap_or_default().to_owned()
        }
    }
}

/// Tells values apart without saying what they are: errors are listed where not everybody may read them.
fn digest(text: &str) -> String {
    format!("of {} bytes, digest {:016x}", text.len(), hash(text))
}

fn cut(text: &str) -> String {
    const SHOWN: usize = 120;
    if text.chars().count() <= SHOWN {
        text.to_owned()
    } else {
        text.chars().take(SHOWN).chain("…".chars()).collect()
    }
}
