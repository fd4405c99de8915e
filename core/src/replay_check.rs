//! Says whether today's code still follows a history that was exported earlier.

use thiserror::Error;

use crate::replay::{Divergence, Execution, Host, Polled, describe};
use crate::{Event, EventId, EventKind, ExecutionId, Handlers, HistoryEvent, InstanceId, Limits, Millis};

/// The first difference between a history and the code.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReplayDifference {
    /// The history is not one.
    #[error("the history is empty or does not begin with OrchestrationStarted")]
    NoStart,
    /// The code that made it is not registered.
    #[error("{name} {version} is not registered")]
    Unregistered {
        /// The orchestration.
        name: String,
        /// Its version.
        version: String,
    },
    /// The code does something else.
    #[error("event {event_id}: history has {expected}, the code did {actual}")]
    At {
        /// Where.
        event_id: u64,
        /// What stands in the history.
        expected: String,
        /// What the code did.
        actual: String,
    },
}

impl From<Divergence> for ReplayDifference {
    fn from(divergence: Divergence) -> Self {
        Self::At { event_id: divergence.at.0, expected: divergence.expected, actual: divergence.actual }
    }
}

/// Replays one execution's exported history, ended or not.
pub fn check_replay(handlers: &dyn Handlers, events: &[Event]) -> Result<(), ReplayDifference> {
    let first = events.first().ok_or(ReplayDifference::NoStart)?;
    let EventKind::OrchestrationStarted { name, version, .. } = &first.kind else {
        return Err(ReplayDifference::NoStart);
    };
    let (_, handler) = handlers
        .resolve(name, Some(version))
        .ok_or_else(|| ReplayDifference::Unregistered { name: name.clone(), version: version.clone() })?;
    let history: Vec<HistoryEvent> = events.iter().map(stored).collect();
    let (id, number) = (InstanceId::new(&first.instance_id), ExecutionId(first.execution_id));
    let host = Host { handler, limits: &Limits::default(), outside_wake: None };
    let mut execution = Execution::begin(&id, number, &history[0], host).ok_or(ReplayDifference::NoStart)?;
    execution.shows_data = true;
    let polled = execution.replay(&history)?;
    match history.last() {
        Some(last) if last.kind.is_terminal() => check_end(last, execution.end_of(polled)),
        _ => Ok(()),
    }
}

/// Compares how the code ended with how the history did.
fn check_end(last: &HistoryEvent, polled: Polled) -> Result<(), ReplayDifference> {
    let actual = match (&last.kind, polled) {
        (EventKind::OrchestrationCompleted { output }, Polled::Returned(Ok(returned))) if *output == returned => {
            return Ok(());
        }
        (EventKind::OrchestrationFailed { .. }, Polled::Returned(Err(_)) | Polled::Failed(_) | Polled::Waiting)
        | (EventKind::OrchestrationContinuedAsNew { .. }, Polled::NextExecution) => return Ok(()),
        (_, Polled::Returned(output)) => format!("returned {output:?}"),
        (_, Polled::NextExecution) => "continued as new".to_owned(),
        (_, Polled::Failed(details)) => details.display_message(),
        (_, Polled::Waiting) => "waited".to_owned(),
    };
    Err(ReplayDifference::At { event_id: last.event_id.0, expected: describe(&last.kind, true), actual })
}

fn stored(event: &Event) -> HistoryEvent {
    HistoryEvent {
        event_id: EventId(event.event_id),
        source_event_id: event.source_event_id.map(EventId),
        message_id: None,
        at: Millis(event.timestamp_ms),
        kind: event.kind.clone(),
    }
}
