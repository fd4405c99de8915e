//! Deleting, pruning and forking.

use outlast_broker::ShardNotice;
use outlast_core::{EventId, ExecutionId, ForkOrigin, HistoryEvent, InstanceId, Millis, ShardId, fork_history};
use outlast_storage::{DeleteInstanceResult, DeleteOptions, Error, InstanceFilter, PruneOptions, PruneResult};

use crate::{Client, ClientError};

impl Client {
    /// Deletes a root instance with its descendants. Without `force` all of them must have ended. If the store's answer is lost
    /// and a repeat finds the instance gone or begun anew, it counts as deleted, and the counts are lost.
    pub async fn delete_instance(&self, instance: &str, force: bool) -> Result<DeleteInstanceResult, ClientError> {
        let id = InstanceId::new(instance);
        // Read first, to have what runs stopped at once. Owners that are not told find out when a worker asks.
        let tree =
            if force { self.store.tree(&id).await.map(|tree| tree.all_ids).unwrap_or_default() } else { Vec::new() };
        let delete = |first_tried: Option<Millis>| {
            let (id, options) = (&id, DeleteOptions { force, first_tried });
            async move {
                match self.store.delete(id, options).await {
                    Err(Error::InstanceNotFound(_)) if first_tried.is_some() => Ok(DeleteInstanceResult::default()),
                    answer => answer,
                }
            }
        };
        let deleted = self.manage(delete).await?;
        self.just_started.clear();
        for gone in tree.into_iter().map(InstanceId::from) {
            self.broker.notify(ShardId::of(&gone, self.store.shards()), ShardNotice::Deleted(gone));
        }
        self.broker.publish_status(&id, None, None);
        Ok(deleted)
    }

    /// Deletes ended root instances that match.
    pub async fn delete_instance_bulk(&self, filter: InstanceFilter) -> Result<DeleteInstanceResult, ClientError> {
        let deleted = self.manage(|_| self.store.delete_bulk(filter.clone())).await?;
        self.just_started.clear();
        Ok(deleted)
    }

    /// Deletes histories of executions before the current one.
    pub async fn prune_executions(&self, instance: &str, options: PruneOptions) -> Result<PruneResult, ClientError> {
        let id = InstanceId::new(instance);
        self.manage(|_| self.store.prune(&id, options.clone())).await
    }

    /// [`Client::prune_executions`] for all instances that match.
    pub async fn prune_executions_bulk(
        &self,
        filter: InstanceFilter,
        options: PruneOptions,
    ) -> Result<PruneResult, ClientError> {
        self.manage(|_| self.store.prune_bulk(filter.clone(), options.clone())).await
    }

    /// Makes a new instance that shares the history of another up to `event_id` and goes on from there by itself.
    /// Refused in the middle of a turn and while a child is outstanding; the error names the nearest event that is allowed.
    pub async fn fork_instance(
        &self,
        instance: &str,
        execution_id: u64,
        event_id: u64,
        new_instance: &str,
    ) -> Result<(), ClientError> {
        self.options.limits.check_instance(new_instance)?;
        let (original, execution) = (InstanceId::new(instance), ExecutionId(execution_id));
        let history = self.insist(|| self.store.history(&original, execution, None)).await?;
        if history.is_empty() {
            return Err(self.no_execution(instance, execution_id).await);
        }
        let origin = ForkOrigin { instance: InstanceId::new(instance), execution: ExecutionId(execution_id) };
        let fork = fork_history(&history, EventId(event_id), &origin, self.surroundings.random_bits());
        let fork = fork.map_err(|error| ClientError::invalid(error.to_string()))?;
        let id = InstanceId::new(new_instance);
        let import = |first_tried: Option<Millis>| {
            let (id, fork) = (&id, &fork);
            async move {
                match self.store.import(id, fork.clone()).await {
                    Err(Error::InstanceExists { .. })
                        if first_tried.is_some() && self.is_fork(id, &fork.history).await? =>
                    {
                        Ok(())
                    }
                    answer => answer.map(drop),
                }
            }
        };
        self.manage(import).await
    }

    /// Whether an instance began with this copied history: how a repeated call recognizes what its first try made.
    async fn is_fork(&self, id: &InstanceId, copied: &[HistoryEvent]) -> Result<bool, Error> {
        let history = self.store.history(id, ExecutionId(1), None).await?;
        let same = |(one, other): (&HistoryEvent, &HistoryEvent)| one.at == other.at && one.kind == other.kind;
        Ok(history.len() >= copied.len() && history.iter().zip(copied).all(same))
    }

    /// Insists on a management call; a role without the right to it gets `ManagementNotAvailable`.
    async fn manage<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: impl Fn(Option<Millis>) -> F,
    ) -> Result<T, ClientError> {
        self.insist_knowing(call).await.map_err(|error| match error {
            ClientError::Forbidden { .. } => ClientError::ManagementNotAvailable,
            other => other,
        })
    }
}
