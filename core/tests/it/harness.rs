//! Runs one instance in memory: scripts of messages in, one line per event and effect out.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use outlast_core::{
    Decision, Effect, Event, EventKind, ExecutionId, ForkError, ForkOrigin, HistoryEvent, InboxSeq, Incoming,
    InstanceId, InstanceState, Limits, Message, MessageId, MessageKind, Millis, OrchestrationRegistry, Snapshot,
    StartMessage, Turn, TurnInput, WarmInstance, fork_history,
};

/// An instance with its stored form beside it.
pub(crate) struct Bench {
    pub(crate) handlers: OrchestrationRegistry,
    pub(crate) now: Millis,
    pub(crate) history: Vec<HistoryEvent>,
    pub(crate) state: InstanceState,
    pub(crate) inbox: Vec<Incoming>,
    pub(crate) warm: WarmInstance,
    pub(crate) limits: Limits,
    pub(crate) id: String,
    sequence: i64,
    turns: u64,
}

impl Bench {
    pub(crate) fn new(handlers: OrchestrationRegistry) -> Self {
        Self::with_limits(handlers, Limits::default())
    }

    pub(crate) fn with_limits(handlers: OrchestrationRegistry, limits: Limits) -> Self {
        let state = InstanceState { execution: ExecutionId(1), ..InstanceState::default() };
        let warm = hydrate(&state, &[], &limits);
        let (history, inbox, id) = (Vec::new(), Vec::new(), "i".to_owned());
        Self { handlers, now: Millis(1_000_000), history, state, inbox, warm, limits, id, sequence: 0, turns: 0 }
    }

    /// Puts a message into the inbox and runs a turn over it.
    pub(crate) fn send(&mut self, kind: MessageKind) -> Turn {
        let incoming = self.row(kind);
        self.turn(vec![incoming])
    }

    pub(crate) fn row(&mut self, kind: MessageKind) -> Incoming {
        self.sequence += 1;
        let message = Message { id: MessageId::new(format!("m{}", self.sequence)), kind };
        let incoming = Incoming { seq: Some(InboxSeq(self.sequence)), message };
        self.inbox.push(incoming.clone());
        incoming
    }

    /// An activity's result, as it comes from a worker.
    pub(crate) fn result(&self, event: u64, outcome: Result<&str, &str>) -> Option<Incoming> {
        let token = self.history.iter().find_map(|e| match &e.kind {
            EventKind::ActivityScheduled { token, .. } if e.event_id.0 == event => Some(*token),
            _ => None,
        })?;
        let outcome = outcome.map(str::to_owned).map_err(|error| {
            outlast_core::ErrorDetails::application(outlast_core::AppErrorKind::ActivityFailed, error)
        });
        let event = outlast_core::EventId(event);
        let kind = MessageKind::ActivityDone { execution: self.state.execution, event, token, outcome, run: None };
        Some(Incoming { seq: None, message: Message { id: MessageId::new(format!("a{event}")), kind } })
    }

    /// A turn, committed into the stored form.
    pub(crate) fn turn(&mut self, messages: Vec<Incoming>) -> Turn {
        self.turns += 1;
        let input = TurnInput { now: self.now, seed: self.turns.wrapping_mul(0x9e37_79b9), messages };
        let Decision::Turn(turn) = self.warm.decide(input, &self.handlers) else {
            panic!("unregistered orchestration")
        };
        self.take(&turn);
        *turn
    }

    /// Takes a decided turn over into the stored form.
    pub(crate) fn take(&mut self, turn: &Turn) {
        assert_eq!(turn.expected.last_event_id, self.state.last_event_id, "a turn builds on what is stored");
        for (execution, event) in &turn.events {
            if *execution != self.state.execution {
                self.history.clear();
                self.state.execution = *execution;
            }
            assert_eq!(event.event_id.0, self.history.len() as u64 + 1, "event ids have no gap");
            self.history.push(event.clone());
        }
        self.inbox.retain(|row| row.seq.is_none_or(|seq| !turn.consumed.contains(&seq)));
        self.state = turn.state.clone();
    }

    /// Drops the live future and makes it again from what is stored.
    pub(crate) fn cold(&mut self) {
        self.warm = hydrate_as(&self.id, &self.state, &self.history, &self.limits);
        let rows = self.inbox.clone();
        if !rows.is_empty() {
            self.turn(rows);
        }
    }

    /// Another instance that goes on from an event of this one, after its first turn.
    pub(crate) fn fork(&self, at: u64, id: &str, seed: u64) -> Result<Self, ForkError> {
        let origin = ForkOrigin { instance: InstanceId::new(&self.id), execution: self.state.execution };
        let fork = fork_history(&self.history, outlast_core::EventId(at), &origin, seed)?;
        let mut bench = Self::with_limits(self.handlers.clone(), self.limits.clone());
        (bench.id, bench.state, bench.history) = (id.to_owned(), fork.state, fork.history);
        (bench.now, bench.turns) = (self.now, self.turns + seed);
        bench.cold();
        bench.turn(Vec::new());
        Ok(bench)
    }

    pub(crate) fn exported(&self) -> Vec<Event> {
        let id = InstanceId::new(&self.id);
        self.history.iter().map(|event| Event::from_stored(&id, self.state.execution, event.clone())).collect()
    }
}

pub(crate) fn hydrate(state: &InstanceState, history: &[HistoryEvent], limits: &Limits) -> WarmInstance {
    hydrate_as("i", state, history, limits)
}

fn hydrate_as(id: &str, state: &InstanceState, history: &[HistoryEvent], limits: &Limits) -> WarmInstance {
    let snapshot = Snapshot { state: state.clone(), history: history.to_vec() };
    WarmInstance::hydrate(InstanceId::new(id), snapshot, Arc::new(limits.clone()))
}

pub(crate) fn start(name: &str, input: &str) -> MessageKind {
    MessageKind::Start(StartMessage {
        name: name.to_owned(),
        version: None,
        input: input.to_owned(),
        parent: None,
        traceparent: None,
    })
}

/// Runs a script twice, warm and with a cold replay before every line, and compares both with what is expected.
///
/// Lines: `start NAME INPUT`, `done EVENT RESULT`, `fail EVENT ERROR`, `raise NAME DATA`, `enqueue QUEUE DATA`,
/// `child EVENT RESULT`, `cancel REASON`, `pause`, `resume`, `advance MILLISECONDS`.
#[track_caller]
pub(crate) fn check(script: &str, expect: &str) {
    let expected: Vec<&str> = expect.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    for cold in [false, true] {
        let text = run(script, cold);
        let actual: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        assert_eq!(actual.join("\n"), expected.join("\n"), "with cold replays: {cold}");
    }
}

fn run(script: &str, cold: bool) -> String {
    let mut bench = Bench::new(crate::orchestrations::registry());
    let mut text = String::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if cold {
            bench.cold();
        }
        let turn = play(&mut bench, line);
        describe(&turn, &mut text);
    }
    writeln!(text, "= {}", bench.state.status.as_str()).unwrap();
    text
}

fn play(bench: &mut Bench, line: &str) -> Turn {
    let mut words = line.splitn(3, ' ');
    let (verb, first, rest) = (words.next().unwrap(), words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (first_text, rest_text) = (first.to_owned(), rest.to_owned());
    match verb {
        "start" => bench.send(start(first, rest)),
        "done" | "fail" => {
            let outcome = if verb == "done" { Ok(rest) } else { Err(rest) };
            let result = bench.result(first.parse().unwrap(), outcome).expect("the activity is in the history");
            bench.turn(vec![result])
        }
        "poison" => {
            let mut incoming = bench.result(first.parse().unwrap(), Ok("")).expect("the activity is in the history");
            if let MessageKind::ActivityDone { outcome, .. } = &mut incoming.message.kind {
                *outcome = Err(outlast_core::ErrorDetails::Poison {
                    attempt_count: 3,
                    max_attempts: 3,
                    message_type: "activity".to_owned(),
                    message: rest_text,
                });
            }
            bench.turn(vec![incoming])
        }
        "raise" => bench.send(MessageKind::Raise { name: first_text, data: rest_text }),
        "enqueue" => bench.send(MessageKind::Enqueue { queue: first_text, data: rest_text }),
        "child" => {
            let event = outlast_core::EventId(first.parse().unwrap());
            let token = bench.history.iter().find_map(|e| match &e.kind {
                EventKind::SubOrchestrationScheduled { token, .. } if e.event_id == event => Some(*token),
                _ => None,
            });
            let (execution, token) = (bench.state.execution, token.expect("the child is in the history"));
            bench.send(MessageKind::ChildDone { execution, event, token, result: Ok(rest_text) })
        }
        "cancel" => bench.send(MessageKind::Cancel { child: None, reason: line["cancel ".len()..].to_owned() }),
        "pause" => bench.send(MessageKind::Pause),
        "resume" => bench.send(MessageKind::Resume),
        "advance" => {
            bench.now = bench.now.plus(Duration::from_millis(first.parse().unwrap()));
            bench.turn(Vec::new())
        }
        other => panic!("no such verb: {other}"),
    }
}

fn describe(turn: &Turn, text: &mut String) {
    for (execution, event) in &turn.events {
        let source = event.source_event_id.map(|id| format!(" <- {id}")).unwrap_or_default();
        writeln!(text, "{execution}.{}{source} {}", event.event_id, kind(&event.kind)).unwrap();
    }
    for effect in &turn.effects {
        match effect {
            Effect::Dispatch(item) => writeln!(text, "> dispatch {} {}", item.key.event, item.name).unwrap(),
            Effect::CancelActivity(key) => writeln!(text, "> cancel {}", key.event).unwrap(),
            Effect::ReadKv(read) => writeln!(text, "> read {} of {}", read.key, read.instance).unwrap(),
        }
    }
    for sent in &turn.outbound {
        let what = match &sent.message.kind {
            MessageKind::Start(start) => format!("start {}", start.name),
            MessageKind::Cancel { .. } => "cancel".to_owned(),
            MessageKind::ChildDone { .. } => "outcome".to_owned(),
            other => format!("{other:?}"),
        };
        writeln!(text, "> send {what} to {}", sent.to).unwrap();
    }
}

/// The event's type and its texts.
fn kind(kind: &EventKind) -> String {
    let json = serde_json::to_value(kind).unwrap();
    let fields: BTreeMap<String, serde_json::Value> = serde_json::from_value(json).unwrap();
    let mut words = vec![fields["type"].as_str().unwrap().to_owned()];
    for name in [
        "name",
        "instance",
        "input",
        "tag",
        "session_id",
        "result",
        "output",
        "data",
        "key",
        "value",
        "status",
        "reason",
    ] {
        words.extend(fields.get(name).and_then(|value| value.as_str()).map(str::to_owned));
    }
    if let Some(details) = fields.get("details") {
        let details: outlast_core::ErrorDetails = serde_json::from_value(details.clone()).unwrap();
        words.push(details.display_message());
    }
    words.join(" ")
}
