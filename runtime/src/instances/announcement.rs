//! Announcing a turn once it is durable: to the counters, the known problems, the log and clients that wait for the instance.

use std::sync::Arc;

use outlast_broker::Broker;
use outlast_core::{
    AppErrorKind, ErrorDetails, EventKind, ExecutionId, InstanceId, InstanceState, LogLevel, LogLine, MessageId, Turn,
};
use tracing::Dispatch;

use crate::problems::known::Problems;
use crate::telemetry::counters::{Counters, Tally};
use crate::telemetry::logging::ORCHESTRATION;

/// Characters of a failure in its log line; the whole text is in the history.
const FAILURE_SHOWN: usize = 1_000;

/// Where a node's turns are announced.
pub(crate) struct Audience {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) problems: Arc<Problems>,
}

/// Built before the commit and made after it, by the committer: clients that wait for one group of turns are woken together, and
/// not one by one as the actors go on.
pub(crate) struct Announcement {
    instance: InstanceId,
    tally: Tally,
    /// Its code is missing here, and it is not moved to another node.
    is_stalled: bool,
    words: Option<Box<Words>>,
    status: Option<Box<Status>>,
}

/// What goes to the log.
struct Words {
    execution: ExecutionId,
    orchestration: String,
    lines: Vec<LogLine>,
    failure: Option<ErrorDetails>,
    /// The log subscriber of the thread that decided the turn; the committer's thread may not have it.
    heard_by: Dispatch,
}

struct Status {
    now: InstanceState,
    begun_by: Option<MessageId>,
}

impl Announcement {
    /// Takes the log lines out of the turn. `begun_by` is the start that began the execution, if there is one; `moves` says
    /// that another node gets the instance.
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

    /// Announces the turn, which is durable. Clients last: one that learns of an end finds the rest complete.
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

    /// Writes the turn's log lines.
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

    /// Logs the failure of an instance, by default: its starter may be gone and never ask about it.
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
