//! Looking at instances.

use std::collections::HashMap;

use outlast_core::{Event, ExecutionId, InstanceId, InstanceStatus, OrchestrationStatus};
use outlast_storage::{
    ExecutionInfo, InstanceInfo, InstanceTree, ListedStatus, QueueDepths, SystemMetrics, SystemStats,
};
use serde::de::DeserializeOwned;

use crate::wait::from_text;
use crate::{Client, ClientError};

/// Something that stands still for another reason than waiting for what its code asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The instance that waits, or the one that waits longest; empty when a node or the broker has the problem.
    pub instance_id: String,
    /// Its orchestration.
    pub orchestration: String,
    /// What it lacks.
    pub reason: String,
    /// How often its turn was tried.
    pub attempts: u32,
    /// When it is tried again, in milliseconds since the Unix epoch.
    pub next_attempt_ms: Option<u64>,
    /// How many instances or activities wait for the same.
    pub waiting: u32,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

impl Client {
    /// The status of an instance.
    pub async fn get_orchestration_status(&self, instance: &str) -> Result<OrchestrationStatus, ClientError> {
        let id = InstanceId::new(instance);
        let state = self.insist(|| self.store.state(&id)).await?;
        Ok(state.map_or(OrchestrationStatus::NotFound, |state| state.to_status()))
    }

    /// The status and execution of an instance. Does not insist, because a wait looks again by itself.
    pub(crate) async fn look_at(&self, instance: &str) -> Result<(OrchestrationStatus, ExecutionId), ClientError> {
        let state = self.store.state(&InstanceId::new(instance)).await?;
        let not_found = (OrchestrationStatus::NotFound, ExecutionId(0));
        Ok(state.map_or(not_found, |state| (state.to_status(), state.execution)))
    }

    /// A value of an instance, read from the store.
    pub async fn get_kv_value(&self, instance: &str, key: &str) -> Result<Option<String>, ClientError> {
        let id = InstanceId::new(instance);
        let entries = self.insist(|| self.store.kv(&id, Some(key))).await?;
        Ok(entries.into_iter().next().map(|entry| entry.value))
    }

    /// A value of an instance, for a wait: see [`Client::look_at`].
    pub(crate) async fn look_at_kv(&self, instance: &str, key: &str) -> Result<Option<String>, ClientError> {
        let entries = self.store.kv(&InstanceId::new(instance), Some(key)).await?;
        Ok(entries.into_iter().next().map(|entry| entry.value))
    }

    /// A value of an instance: JSON, or else a text as it is.
    pub async fn get_kv_value_typed<T: DeserializeOwned>(
        &self,
        instance: &str,
        key: &str,
    ) -> Result<Option<T>, ClientError> {
        let value = self.get_kv_value(instance, key).await?;
        value.map(|value| from_text(instance, format_args!("value of key {key:?}"), &value)).transpose()
    }

    /// All values of an instance.
    pub async fn get_kv_all_values(&self, instance: &str) -> Result<HashMap<String, String>, ClientError> {
        let id = InstanceId::new(instance);
        let entries = self.insist(|| self.store.kv(&id, None)).await?;
        Ok(entries.into_iter().map(|entry| (entry.key, entry.value)).collect())
    }

    /// Whether instances can be listed, deleted and pruned.
    pub fn has_management_capability(&self) -> bool {
        true
    }

    /// Ids of all instances, newest first.
    pub async fn list_all_instances(&self) -> Result<Vec<String>, ClientError> {
        self.insist(|| self.store.list(None)).await
    }

    /// Ids of instances with this status, as [`InstanceInfo`] has it: `Running`, `Paused`, `Completed` or `Failed`. No
    /// instance has another.
    pub async fn list_instances_by_status(&self, status: &str) -> Result<Vec<String>, ClientError> {
        let Some(status) = ListedStatus::parse(status) else { return Ok(Vec::new()) };
        self.insist(|| self.store.list(Some(status))).await
    }

    /// Whether the turns of an instance are stopped. One that has ended is not paused.
    pub async fn is_paused(&self, instance: &str) -> Result<bool, ClientError> {
        let id = InstanceId::new(instance);
        let state = self.insist(|| self.store.state(&id)).await?.ok_or_else(|| not_found(instance))?;
        Ok(state.paused && state.status == InstanceStatus::Running)
    }

    /// Metadata of an instance.
    pub async fn get_instance_info(&self, instance: &str) -> Result<InstanceInfo, ClientError> {
        let id = InstanceId::new(instance);
        self.insist(|| self.store.info(&id)).await?.ok_or_else(|| not_found(instance))
    }

    /// The instance and all its descendants.
    pub async fn get_instance_tree(&self, instance: &str) -> Result<InstanceTree, ClientError> {
        self.get_instance_info(instance).await?;
        let id = InstanceId::new(instance);
        self.insist(|| self.store.tree(&id)).await
    }

    /// Numbers of the executions that have a history.
    pub async fn list_executions(&self, instance: &str) -> Result<Vec<u64>, ClientError> {
        let id = InstanceId::new(instance);
        let executions = self.insist(|| self.store.executions(&id)).await?;
        Ok(executions.into_iter().map(|execution| execution.execution_id).collect())
    }

    /// Metadata of an execution.
    pub async fn get_execution_info(&self, instance: &str, execution_id: u64) -> Result<ExecutionInfo, ClientError> {
        let id = InstanceId::new(instance);
        let executions = self.insist(|| self.store.executions(&id)).await?;
        match executions.into_iter().find(|execution| execution.execution_id == execution_id) {
            Some(found) => Ok(found),
            None => Err(self.no_execution(instance, execution_id).await),
        }
    }

    /// What is missing: the instance, or only this execution.
    pub(crate) async fn no_execution(&self, instance: &str, execution_id: u64) -> ClientError {
        let missing = ClientError::ExecutionNotFound { instance_id: instance.to_owned(), execution_id };
        self.get_instance_info(instance).await.map_or_else(|error| error, |_| missing)
    }

    /// The history of an execution; empty when there is none.
    pub async fn read_execution_history(&self, instance: &str, execution_id: u64) -> Result<Vec<Event>, ClientError> {
        let (id, execution) = (InstanceId::new(instance), ExecutionId(execution_id));
        let events = self.insist(|| self.store.history(&id, execution, None)).await?;
        Ok(events.into_iter().map(|event| Event::from_stored(&id, execution, event)).collect())
    }

    /// Counts over all instances.
    pub async fn get_system_metrics(&self) -> Result<SystemMetrics, ClientError> {
        Ok(self.insist(|| self.store.metrics()).await?.0)
    }

    /// Depths of the queues.
    pub async fn get_queue_depths(&self) -> Result<QueueDepths, ClientError> {
        Ok(self.insist(|| self.store.metrics()).await?.1)
    }

    /// Size of one instance.
    pub async fn get_orchestration_stats(&self, instance: &str) -> Result<Option<SystemStats>, ClientError> {
        let id = InstanceId::new(instance);
        self.insist(|| self.store.stats(&id)).await
    }

    /// What stands still for another reason than waiting for what its code asked for; known within ten seconds.
    pub async fn list_problems(&self) -> Result<Vec<Problem>, ClientError> {
        let rows = self.insist(|| self.store.problems()).await?;
        Ok(rows
            .into_iter()
            .map(|row| Problem {
                instance_id: row.instance.to_string(),
                orchestration: row.orchestration,
                reason: row.waits,
                attempts: row.stalled,
                next_attempt_ms: row.wake_at.map(|at| at.0),
                waiting: row.waiting,
                since_ms: row.since.0,
            })
            .collect())
    }
}

pub(crate) fn not_found(instance: &str) -> ClientError {
    ClientError::InstanceNotFound { instance_id: instance.to_owned() }
}
