//! What must be true at the end, whatever has happened. It reads the tables and the ledger of what really ran, and asks the runtime
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use outlast_core::{EventKind, HistoryEvent, InstanceId, InstanceStatus};
use outlast_storage::InspectStore as _;
use tokio::time::Instant;

use super::code::Ledger;
use crate::store::SimulatedStore;

/// An activity that begins so long after its instance has ended was not asked about.
const BEGINS_WITHIN: Duration = Duration::from_secs(4);

/// A life of an id that the driver knows to be over.
pub(super) struct Ended {
    pub(super) instance: String,
    pub(super) life: u32,
    pub(super) at: Instant,
}

/// Nothing begins for an instance that has ended or was deleted.
pub(super) fn nothing_began_late(ledger: &Ledger, ended: &[Ended], wrong: &mut Vec<String>) {
    for ran in ledger.runs() {
        let of = |ended: &&Ended| ended.instance == ran.instance && ended.life == ran.life;
        if let Some(ended) = ended.iter().find(of)
            && ran.begun > ended.at + BEGINS_WITHIN
        {
            let late = ran.begun - ended.at;
            wrong.push(format!("{} of life {} began {late:?} after its end", ran.key, ran.life));
        }
    }
}

/// Checks all histories and what was left over; returns how many events there are.
pub(super) async fn at_rest(store: &SimulatedStore, ledger: &Ledger, wrong: &mut Vec<String>) -> u64 {
    let ran: BTreeSet<String> = ledger.runs().into_iter().map(|ran| ran.key).collect();
    let mut events = 0;
    let names = match store.list(None).await {
        Ok(names) => names,
        Err(error) => {
            wrong.push(format!("the store is healed and does not answer: {error}"));
            return 0;
        }
    };
    for name in names {
        let id = InstanceId::new(&name);
        let state = store.state(&id).await.ok().flatten();
        if state.as_ref().is_none_or(|state| state.status == InstanceStatus::Running) {
            wrong.push(format!("{name} has not ended: {state:?}"));
        }
        for execution in store.executions(&id).await.unwrap_or_default() {
            let number = outlast_core::ExecutionId(execution.execution_id);
            let history = store.history(&id, number, None).await.unwrap_or_default();
            events += history.len() as u64;
            check_history(&format!("{name} execution {}", number.0), &history, wrong);
            check_activities(&id, number, &history, &ran, wrong);
        }
    }
    if let Ok((_, depths)) = store.metrics().await
        && depths.orchestrator_queue > 0
    {
        wrong.push(format!("{} messages are left in inboxes", depths.orchestrator_queue));
    }
    events
}

/// Numbers without a gap, each outcome once and after its cause, one end.
fn check_history(name: &str, history: &[HistoryEvent], wrong: &mut Vec<String>) {
    if history.iter().zip(1..).any(|(event, number)| event.event_id.0 != number) {
        wrong.push(format!("{name}: its events are not numbered 1 to {}", history.len()));
    }
    let mut outcomes = BTreeMap::<_, u64>::new();
    for event in history {
        let Some(source) = event.source_event_id else { continue };
        *outcomes.entry(source).or_default() += 1;
        if source >= event.event_id {
            wrong.push(format!("{name}: event {} comes before its cause {}", event.event_id.0, source.0));
        }
    }
    let twice = outcomes.iter().filter(|(_, count)| **count > 1);
    wrong.extend(twice.map(|(source, count)| format!("{name}: event {} has {count} outcomes", source.0)));
    let ends = history.iter().filter(|event| event.kind.is_terminal()).count();
    let is_last = history.last().is_some_and(|last| last.kind.is_terminal());
    if ends != 1 || !is_last {
        wrong.push(format!("{name}: it has {ends} ends, and ends with {:?}", history.last().map(|event| &event.kind)));
    }
    let is_early =
        |event: &&HistoryEvent| matches!(event.kind, EventKind::TimerFired { fire_at_ms } if event.at.0 < fire_at_ms);
    wrong.extend(
        history.iter().filter(is_early).map(|event| format!("{name}: timer event {} is early", event.event_id.0)),
    );
    if history.windows(2).any(|pair| pair[1].at < pair[0].at) {
        wrong.push(format!("{name}: time goes back"));
    }
}

/// Whatever a history says of the end of an activity, it has run.
fn check_activities(
    id: &InstanceId,
    execution: outlast_core::ExecutionId,
    history: &[HistoryEvent],
    ran: &BTreeSet<String>,
    wrong: &mut Vec<String>,
) {
    for event in history {
        let has_ended = matches!(event.kind, EventKind::ActivityCompleted { .. });
        let (true, Some(source)) = (has_ended, event.source_event_id) else { continue };
        let scheduled = history.iter().find(|scheduled| scheduled.event_id == source);
        let first = match scheduled.map(|scheduled| &scheduled.kind) {
            Some(EventKind::ActivityScheduled { first_event_id, .. }) => first_event_id.unwrap_or(source.0),
            _ => {
                wrong.push(format!(
                    "{id}: an activity has ended that nobody has scheduled, at event {}",
                    event.event_id.0
                ));
                continue;
            }
        };
        let key = format!("{id}/{}/{}", execution.0, first);
        if !ran.contains(&key) {
            wrong.push(format!("{id}: activity {key} has completed and never ran"));
        }
    }
}
