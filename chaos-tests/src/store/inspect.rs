//! Reading what the database holds.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use async_trait::async_trait;
use outlast_core::{
    EventId, EventKind, ExecutionId, HistoryEvent, InstanceId, InstanceState, InstanceStatus, KvEntry, MessageKind,
    Millis, OrchestrationStatus, encode,
};
use outlast_storage::{
    Error, ExecutionInfo, InspectStore, InstanceInfo, InstanceTree, ListedStatus, ProblemRow, QueueDepths, Standstill,
    SystemMetrics, SystemStats,
};

use super::SimulatedStore;
use super::tables::{Instance, Tables};

/// How long an instance may be without an owner before that is a problem.
const OWNERLESS_MS: u64 = 2_000;

#[async_trait]
impl InspectStore for SimulatedStore {
    async fn state(&self, instance: &InstanceId) -> Result<Option<InstanceState>, Error> {
        self.read(|tables, _| tables.instances.get(instance).map(|found| found.state.clone())).await
    }

    async fn info(&self, instance: &InstanceId) -> Result<Option<InstanceInfo>, Error> {
        self.read(|tables, _| tables.instances.get(instance).map(|found| info_of(instance, found))).await
    }

    async fn tree(&self, instance: &InstanceId) -> Result<InstanceTree, Error> {
        self.read(|tables, _| {
            let all = tables.tree_of(instance);
            let all_ids = all.iter().map(|id| id.as_str().to_owned()).collect();
            InstanceTree { root_id: instance.as_str().to_owned(), all_ids }
        })
        .await
    }

    async fn list(&self, status: Option<ListedStatus>) -> Result<Vec<String>, Error> {
        self.read(|tables, _| {
            let is_wanted = |state: &InstanceState| status.is_none_or(|wanted| wanted == listed(state));
            let mut found: Vec<_> = tables.instances.iter().filter(|(_, found)| is_wanted(&found.state)).collect();
            found.sort_by_key(|(id, found)| (Reverse(found.created), *id));
            found.into_iter().map(|(id, _)| id.as_str().to_owned()).collect()
        })
        .await
    }

    async fn executions(&self, instance: &InstanceId) -> Result<Vec<ExecutionInfo>, Error> {
        self.read(|tables, _| {
            let history = tables.instances.get(instance).map(|found| &found.history);
            history.into_iter().flatten().map(|(execution, events)| execution_info(*execution, events)).collect()
        })
        .await
    }

    async fn history(
        &self,
        instance: &InstanceId,
        execution: ExecutionId,
        only: Option<EventId>,
    ) -> Result<Vec<HistoryEvent>, Error> {
        self.read(|tables, _| {
            let events = tables.instances.get(instance).into_iter().flat_map(|found| found.events(execution));
            events.filter(|event| only.is_none_or(|only| event.event_id == only)).cloned().collect()
        })
        .await
    }

    async fn kv(&self, instance: &InstanceId, key: Option<&str>) -> Result<Vec<KvEntry>, Error> {
        self.read(|tables, _| {
            let entries = tables.instances.get(instance).into_iter().flat_map(|found| found.kv.values());
            entries.filter(|entry| key.is_none_or(|key| entry.key == key)).cloned().collect()
        })
        .await
    }

    async fn metrics(&self) -> Result<(SystemMetrics, QueueDepths), Error> {
        self.read(|tables, _| metrics(tables)).await
    }

    async fn stats(&self, instance: &InstanceId) -> Result<Option<SystemStats>, Error> {
        self.read(|tables, _| {
            let found = tables.instances.get(instance)?;
            let is_queued = |kind: &MessageKind| matches!(kind, MessageKind::Enqueue { .. });
            let bytes = |event: &HistoryEvent| encode(&event.kind).len() as u64;
            Some(SystemStats {
                history_event_count: found.events(found.state.execution).count() as u64,
                history_size_bytes: found.events(found.state.execution).map(bytes).sum(),
                queue_pending_count: found.inbox.values().filter(|row| is_queued(&row.message.kind)).count() as u64,
                kv_user_key_count: found.kv.len() as u64,
                kv_total_value_bytes: found.kv.values().map(|entry| entry.value.len() as u64).sum(),
            })
        })
        .await
    }

    async fn problems(&self) -> Result<Vec<ProblemRow>, Error> {
        self.read(|tables, now| {
            let mut found: Vec<ProblemRow> = tables.running().flat_map(|(id, found)| own_problems(id, found)).collect();
            found.extend(reported(tables, now));
            found.extend(ownerless(tables, now));
            found.sort_by(|one, other| one.instance.cmp(&other.instance));
            found
        })
        .await
    }
}

fn listed(state: &InstanceState) -> ListedStatus {
    match state.status {
        InstanceStatus::Running if state.paused => ListedStatus::Paused,
        InstanceStatus::Running => ListedStatus::Running,
        InstanceStatus::Completed => ListedStatus::Completed,
        InstanceStatus::Failed => ListedStatus::Failed,
    }
}

fn info_of(id: &InstanceId, found: &Instance) -> InstanceInfo {
    let output = match found.state.to_status() {
        OrchestrationStatus::Completed { output, .. } => Some(output),
        OrchestrationStatus::Failed { details, .. } => Some(details.display_message()),
        OrchestrationStatus::Running { .. } | OrchestrationStatus::NotFound => None,
    };
    InstanceInfo {
        instance_id: id.as_str().to_owned(),
        orchestration_name: found.state.orchestration.clone(),
        orchestration_version: found.state.version.clone(),
        current_execution_id: found.state.execution.0,
        status: listed(&found.state).as_str().to_owned(),
        output,
        created_at: found.created.0,
        updated_at: found.updated.0,
        parent_instance_id: found.parent.as_ref().map(|parent| parent.as_str().to_owned()),
    }
}

fn execution_info(execution: ExecutionId, events: &BTreeMap<EventId, HistoryEvent>) -> ExecutionInfo {
    let (first, last) = (events.values().next(), events.values().next_back());
    let (status, output) = match last.map(|event| &event.kind) {
        Some(EventKind::OrchestrationCompleted { output }) => ("Completed", Some(output.clone())),
        Some(EventKind::OrchestrationFailed { details }) => ("Failed", Some(details.display_message())),
        Some(EventKind::OrchestrationContinuedAsNew { input }) => ("ContinuedAsNew", Some(input.clone())),
        Some(EventKind::OrchestrationPaused) => ("Paused", None),
        // After any other last event, the execution goes on.
        _ => ("Running", None),
    };
    ExecutionInfo {
        execution_id: execution.0,
        status: status.to_owned(),
        output,
        started_at: first.map_or(0, |event| event.at.0),
        completed_at: last.filter(|event| event.kind.is_terminal()).map(|event| event.at.0),
        event_count: events.len(),
    }
}

fn metrics(tables: &Tables) -> (SystemMetrics, QueueDepths) {
    let (mut metrics, mut depths) = (SystemMetrics::default(), QueueDepths::default());
    for found in tables.instances.values() {
        metrics.total_instances += 1;
        metrics.total_executions += found.history.len() as u64;
        metrics.total_events += found.history.values().map(|events| events.len() as u64).sum::<u64>();
        match found.state.status {
            InstanceStatus::Running => {
                metrics.running_instances += 1;
                metrics.paused_instances += u64::from(found.state.paused);
                depths.timer_queue += usize::from(found.state.wake_at.is_some());
            }
            InstanceStatus::Completed => metrics.completed_instances += 1,
            InstanceStatus::Failed => metrics.failed_instances += 1,
        }
        depths.orchestrator_queue += found.inbox.len();
        depths.worker_queue += found.state.pending as usize;
    }
    (metrics, depths)
}

/// The problems that an instance's own row shows.
fn own_problems(id: &InstanceId, found: &Instance) -> impl Iterator<Item = ProblemRow> {
    let row = |waits: String, stalled, wake_at| ProblemRow {
        instance: id.clone(),
        orchestration: found.state.orchestration.clone(),
        waits,
        stalled,
        wake_at,
        waiting: 1,
        since: found.updated,
    };
    let state = &found.state;
    let stalled = (state.stalled > 0).then(|| row(state.waits.clone(), state.stalled, state.wake_at));
    let paused = state.paused.then(|| row(Standstill::Paused.to_string(), 0, None));
    stalled.into_iter().chain(paused)
}

/// Shortages that live nodes have reported, added up by reason.
fn reported(tables: &Tables, now: Millis) -> Vec<ProblemRow> {
    let live = tables.shortages.iter().filter(|(node, _)| tables.is_live(node, now));
    let mut by_reason: BTreeMap<&str, ProblemRow> = BTreeMap::new();
    for shortage in live.flat_map(|(_, shortages)| shortages) {
        let new = ProblemRow {
            instance: shortage.instance.clone(),
            orchestration: shortage.orchestration.clone(),
            waits: shortage.reason.clone(),
            stalled: 0,
            wake_at: None,
            waiting: 0,
            since: shortage.since,
        };
        let known = by_reason.entry(&shortage.reason).or_insert_with(|| new.clone());
        let waiting = known.waiting.saturating_add(shortage.waiting);
        if new.since < known.since {
            *known = new;
        }
        known.waiting = waiting;
    }
    by_reason.into_values().collect()
}

/// Instances without a live owner, as one problem.
fn ownerless(tables: &Tables, now: Millis) -> Option<ProblemRow> {
    let is_live_owner = |owner: &outlast_core::NodeId| tables.is_live(owner, now);
    let has_owner = |found: &Instance| {
        let shard = tables.shards.get(usize::from(found.shard.0));
        shard.is_some_and(|shard| shard.owner.as_ref().is_some_and(is_live_owner))
    };
    let latest = Millis(now.0.saturating_sub(OWNERLESS_MS));
    let waits = |found: &Instance| !found.state.paused && found.state.stalled == 0 && found.updated <= latest;
    let waiting: Vec<_> = tables.running().filter(|(_, found)| waits(found) && !has_owner(found)).collect();
    let (id, longest) = waiting.iter().min_by_key(|(_, found)| found.updated)?;
    let serves = tables.nodes.values().any(|node| node.lease_until >= now && !node.info.handlers.is_empty());
    let why = if serves { Standstill::NoOwner } else { Standstill::NoNode };
    Some(ProblemRow {
        instance: (*id).clone(),
        orchestration: longest.state.orchestration.clone(),
        waits: why.to_string(),
        stalled: 0,
        wake_at: None,
        waiting: u32::try_from(waiting.len()).unwrap_or(u32::MAX),
        since: longest.updated,
    })
}
