//! Reading what the store holds, for clients, dashboards and people.

use async_trait::async_trait;
use outlast_core::{
    EventId, EventKind, ExecutionId, HistoryEvent, InstanceId, InstanceState, InstanceStatus, KvEntry, Millis,
    OrchestrationStatus,
};

use crate::Error;

/// Where an instance stands, by the word that lists and [`InstanceInfo`] use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListedStatus {
    /// Not ended, and not paused.
    Running,
    /// Not ended; its turns are stopped.
    Paused,
    /// Ended with `Ok`.
    Completed,
    /// Ended with an error.
    Failed,
}

impl ListedStatus {
    /// From the row of an instance. Whether one that has ended was paused before counts no more.
    pub(crate) fn of(state: &InstanceState) -> Self {
        match state.status {
            InstanceStatus::Running if state.paused => Self::Paused,
            InstanceStatus::Running => Self::Running,
            InstanceStatus::Completed => Self::Completed,
            InstanceStatus::Failed => Self::Failed,
        }
    }

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Paused => "Paused",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
        }
    }

    /// The status with this word; letter case does not matter.
    pub fn parse(word: &str) -> Option<Self> {
        let all = [Self::Running, Self::Paused, Self::Completed, Self::Failed];
        all.into_iter().find(|status| status.as_str().eq_ignore_ascii_case(word))
    }

    /// The status column of such rows, and the paused column where it counts.
    pub(crate) fn columns(self) -> (InstanceStatus, Option<bool>) {
        match self {
            Self::Running => (InstanceStatus::Running, Some(false)),
            Self::Paused => (InstanceStatus::Running, Some(true)),
            Self::Completed => (InstanceStatus::Completed, None),
            Self::Failed => (InstanceStatus::Failed, None),
        }
    }
}

/// Metadata of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceInfo {
    /// Its id.
    pub instance_id: String,
    /// The orchestration's name.
    pub orchestration_name: String,
    /// The version of the current execution; empty before the first turn.
    pub orchestration_version: String,
    /// The current execution.
    pub current_execution_id: u64,
    /// `Running`, `Paused`, `Completed` or `Failed`.
    pub status: String,
    /// The output, or the failure in one line.
    pub output: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub created_at: u64,
    /// Milliseconds since the Unix epoch of the last change.
    pub updated_at: u64,
    /// The parent's id.
    pub parent_instance_id: Option<String>,
}

impl InstanceInfo {
    /// From the row of an instance, with the moments of its creation and last change.
    pub(crate) fn new(id: String, state: InstanceState, created: u64, updated: u64, parent: Option<String>) -> Self {
        let output = match state.to_status() {
            OrchestrationStatus::Completed { output, .. } => Some(output),
            OrchestrationStatus::Failed { details, .. } => Some(details.display_message()),
            OrchestrationStatus::Running { .. } | OrchestrationStatus::NotFound => None,
        };
        let status = ListedStatus::of(&state).as_str().to_owned();
        Self {
            instance_id: id,
            orchestration_name: state.orchestration,
            orchestration_version: state.version,
            current_execution_id: state.execution.0,
            status,
            output,
            created_at: created,
            updated_at: updated,
            parent_instance_id: parent,
        }
    }
}

/// Metadata of an execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutionInfo {
    /// Its number.
    pub execution_id: u64,
    /// `Running`, `Paused`, `Completed`, `Failed` or `ContinuedAsNew`.
    pub status: String,
    /// The output, the failure in one line, or the next execution's input.
    pub output: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub started_at: u64,
    /// Milliseconds since the Unix epoch.
    pub completed_at: Option<u64>,
    /// How many events it has.
    pub event_count: usize,
}

/// An instance and all its descendants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceTree {
    /// The root.
    pub root_id: String,
    /// Root and descendants, parents first.
    pub all_ids: Vec<String>,
}

impl InstanceTree {
    /// How many instances there are, the root included.
    pub fn size(&self) -> usize {
        self.all_ids.len()
    }

    /// Whether the root has no descendants.
    pub fn is_root_only(&self) -> bool {
        self.size() == 1
    }
}

/// Counts over all instances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemMetrics {
    /// All instances.
    pub total_instances: u64,
    /// All executions that have a history.
    pub total_executions: u64,
    /// Not ended, the paused ones among them.
    pub running_instances: u64,
    /// Not ended, with their turns stopped.
    pub paused_instances: u64,
    /// Ended with `Ok`.
    pub completed_instances: u64,
    /// Ended with an error.
    pub failed_instances: u64,
    /// All events.
    pub total_events: u64,
}

/// What waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueDepths {
    /// Messages for instances.
    pub orchestrator_queue: usize,
    /// Activities without an outcome.
    pub worker_queue: usize,
    /// Instances that wait for a moment in time.
    pub timer_queue: usize,
}

/// Size of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemStats {
    /// Events of the current execution.
    pub history_event_count: u64,
    /// Stored bytes of the current execution's history.
    pub history_size_bytes: u64,
    /// Queue messages not yet taken.
    pub queue_pending_count: u64,
    /// Keys of the KV.
    pub kv_user_key_count: u64,
    /// Bytes of all KV values.
    pub kv_total_value_bytes: u64,
}

/// Which instances a bulk operation is for. Empty fields do not restrict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceFilter {
    /// Only these.
    pub instance_ids: Option<Vec<String>>,
    /// Only those that ended before this moment (milliseconds since the Unix epoch); none that runs.
    pub completed_before: Option<u64>,
    /// At most so many are changed by one call (default 1,000). A call that changes none has found no more.
    pub limit: Option<u32>,
}

/// What to keep when pruning. Both bounds must be met for an execution to go; the current one never goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneOptions {
    /// Keep the last so many.
    pub keep_last: Option<u32>,
    /// Prune only executions that ended before this moment (milliseconds since the Unix epoch).
    pub completed_before: Option<u64>,
}

impl InstanceFilter {
    /// The moment as stores compare it.
    pub(crate) fn before(&self) -> i64 {
        self.completed_before.map_or(i64::MAX, stored_moment)
    }
}

impl PruneOptions {
    /// The moment as stores compare it.
    pub(crate) fn before(&self) -> Option<i64> {
        self.completed_before.map(stored_moment)
    }
}

/// What lies beyond all moments that can be stored comes after them.
fn stored_moment(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// What a deletion removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteInstanceResult {
    /// Instances.
    pub instances_deleted: u64,
    /// Executions.
    pub executions_deleted: u64,
    /// Events.
    pub events_deleted: u64,
    /// Inbox rows.
    pub queue_messages_deleted: u64,
}

/// What pruning removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneResult {
    /// Instances that had something to prune.
    pub instances_processed: u64,
    /// Executions.
    pub executions_deleted: u64,
    /// Events.
    pub events_deleted: u64,
}

/// Problems of one kind that are listed: more than anybody reads, and bounded memory for whoever asks.
pub(crate) const PROBLEMS_MAX: usize = 10_000;
/// How long an instance may be without an owner before that is a problem: a process has to begin somewhere.
pub(crate) const OWNERLESS_MS: u64 = 2_000;

/// Something that waits for what nobody serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProblemRow {
    /// The instance that waits longest.
    pub instance: InstanceId,
    /// Its orchestration.
    pub orchestration: String,
    /// The reason, from `InstanceState::waits` or from a [`crate::Shortage`].
    pub waits: String,
    /// How often its turn was tried.
    pub stalled: u32,
    /// When it will be tried again, if that is known.
    pub wake_at: Option<Millis>,
    /// How much waits for the same.
    pub waiting: u32,
    /// Since when.
    pub since: Millis,
}

/// What clients and people read. All it decides is whether a wait is over, and stale answers do no harm there: whoever waits
/// subscribes to updates before reading, is told of what happens later, and reads again now and then.
#[async_trait]
pub trait InspectStore: Send + Sync + 'static {
    /// The row of an instance.
    async fn state(&self, instance: &InstanceId) -> Result<Option<InstanceState>, Error>;

    /// Metadata of an instance.
    async fn info(&self, instance: &InstanceId) -> Result<Option<InstanceInfo>, Error>;

    /// The instance and all its descendants.
    async fn tree(&self, instance: &InstanceId) -> Result<InstanceTree, Error>;

    /// Ids of all instances, or of those with this status, newest first.
    async fn list(&self, status: Option<ListedStatus>) -> Result<Vec<String>, Error>;

    /// Executions that have a history, oldest first.
    async fn executions(&self, instance: &InstanceId) -> Result<Vec<ExecutionInfo>, Error>;

    /// One execution's history, in order; only one event of it when `only` is given. If a worker reads its input here after the
    /// event was replaced by another life's, its report is refused, because it carries the token of the old event.
    async fn history(
        &self,
        instance: &InstanceId,
        execution: ExecutionId,
        only: Option<EventId>,
    ) -> Result<Vec<HistoryEvent>, Error>;

    /// The key-value state; only `key` when given.
    async fn kv(&self, instance: &InstanceId, key: Option<&str>) -> Result<Vec<KvEntry>, Error>;

    /// Counts over everything.
    async fn metrics(&self) -> Result<(SystemMetrics, QueueDepths), Error>;

    /// Size of one instance; `None` when there is none.
    async fn stats(&self, instance: &InstanceId) -> Result<Option<SystemStats>, Error>;

    /// Running instances whose turns cannot begin (`stalled > 0`), paused ones, those that have no owner for two seconds, and
    /// what nodes have reported.
    async fn problems(&self) -> Result<Vec<ProblemRow>, Error>;
}

/// The status that an execution's last event stands for.
pub(crate) fn execution_status(kind: &EventKind) -> (&'static str, Option<String>) {
    match kind {
        EventKind::OrchestrationCompleted { output } => ("Completed", Some(output.clone())),
        EventKind::OrchestrationFailed { details } => ("Failed", Some(details.display_message())),
        EventKind::OrchestrationContinuedAsNew { input } => ("ContinuedAsNew", Some(input.clone())),
        // A paused execution records nothing but its resumption or its end.
        EventKind::OrchestrationPaused => ("Paused", None),
        _ => ("Running", None),
    }
}
