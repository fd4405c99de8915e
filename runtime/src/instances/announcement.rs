//! What is said of a turn as soon as it is durable: to counters, known problems, the log and whoever waits for the instance.

use std::sync::Arc;

use outlast_broker::Broker;
use outlast_core::{
    AppErrorKind, ErrorDetails, EventKind, ExecutionId, InstanceId, InstanceState, LogLevel, LogLine, MessageId, Turn,
};
use tracing::Dispatch;

use crate::problems::known::Problems;
use crate::telemetry::counters::{Counters, Tally};
use crate::telemetry::logging::ORCHESTRATION;

/// Characters of a failure in its log line.
const FAILURE_SHOWN: usize = 1_000;

/// Who is told of a node's turns.
pub(crate) struct Audience {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) problems: Arc<Problems>,
}

/// Made before the commit and said after it, by whoever commits: those who wait for one group of turns are woken together, and not
/// one by one as the actors go on.
pub(crate) struct Announcement {
    instance: InstanceId,
    tally: Tally,
    /// Nobody here has its code, and it was not moved.
    is_stalled: bool,
    words: Option<Box<Words>>,
    status: Option<Box<Status>>,
}

/// What the log is told.
struct Words {
    execution: ExecutionId,
    orchestration: String,
    lines: Vec<LogLine>,
    failure: Option<ErrorDetails>,
    /// Whoever hears the log where the turn was decided; the thread that commits may have no such subscriber.
    heard_by: Dispatch,
}

struct Status {
    now: InstanceState,
    begun_by: Option<MessageId>,
}

impl Announcement {
    /// Takes the log lines out of the turn. `begun_by` is the start that began the execution, if there is one; it
    /// `moves` when another node gets it.
    pub(crate) fn new(
        instance: &InstanceId,
        before: &InstanceState,
        turn: &mut Turn,
        begun_by: Option<&MessageId>,
        moves: bool,
    ) -> Self {
        let failure = turn.events.iter().rev().find_map(|(_, event)| match &event.kind {
            EventKind::OrchestrationFailed { details } => Some(details.clone()),
            _ => None,
        });
        let lines = std::mem::take(&mut turn.logs);
        let now = &turn.state;
        let words = (failure.is_some() || !lines.is_empty()).then(|| {
            let (execution, orchestration) = (turn.expected.execution, now.orchestration.clone());
            let heard_by = tracing::dispatcher::get_default(Dispatch::clone);
            Box::new(Words { execution, orchestration, lines, failure, heard_by })
        });
        let has_changed = !turn.kv.is_empty()
            || before.status != now.status
            || before.custom_status_version != now.custom_status_version
            || before.execution != now.execution;
        Self {
            instance: instance.clone(),
            tally: Tally::of(turn),
            is_stalled: !moves && now.stalled > 0,
            words,
            status: has_changed.then(|| Box::new(Status { now: now.clone(), begun_by: begun_by.cloned() })),
        }
    }

    /// Says it; the turn is durable. Clients last: whoever knows of an end finds all the rest complete.
    pub(crate) fn make(&self, audience: &Audience) {
        crate::telemetry::metrics::turn_committed();
        audience.counters.committed(&self.tally);
        audience.problems.end_damaged(&self.instance);
        audience.problems.note_stalled(&self.instance, self.is_stalled);
        self.log();
        if let Some(status) = &self.status {
            audience.broker.publish_status(&self.instance, Some(&status.now), status.begun_by.as_ref());
        }
    }

    /// Says to the log what it is told.
    pub(crate) fn log(&self) {
        let Some(words) = &self.words else { return };
        tracing::dispatcher::with_default(&words.heard_by, || {
            words.lines.iter().for_each(|line| words.log_line(&self.instance, line));
            if let Some(details) = &words.failure {
                words.log_failure(&self.instance, details);
            }
        });
    }
}

impl Words {
    fn log_line(&self, instance: &InstanceId, line: &LogLine) {
        let (execution, orchestration) = (self.execution.0, &self.orchestration);
        macro_rules! at {
            ($level:ident) => {
                tracing::$level!(target: ORCHESTRATION, %instance, execution, %orchestration, "{}", line.text)
            };
        }
        match line.level {
            LogLevel::Debug => at!(debug),
            LogLevel::Info => at!(info),
            LogLevel::Warn => at!(warn),
            LogLevel::Error => at!(error),
        }
    }

    /// One line about an instance that has failed, by default: its starter may not be there any more to ask.
    fn log_failure(&self, instance: &InstanceId, details: &ErrorDetails) {
        let why: String = details.display_message().chars().take(FAILURE_SHOWN).collect();
        let (execution, orchestration) = (self.execution.0, &self.orchestration);
        if let ErrorDetails::Application { kind: AppErrorKind::Cancelled { .. }, .. } = details {
            tracing::info!(target: ORCHESTRATION, %instance, execution, %orchestration, "orchestration was {why}");
        } else {
            tracing::error!(target: ORCHESTRATION, %instance, execution, %orchestration, "orchestration failed: {why}");
        }
    }
}
