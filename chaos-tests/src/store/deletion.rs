//! Deleting instances and pruning executions.

use std::collections::BTreeSet;

use outlast_core::{ExecutionId, InstanceId, Millis};
use outlast_storage::{DeleteInstanceResult, Error, InstanceFilter, PruneOptions, PruneResult};

use super::tables::{Instance, Tables};

/// Instances that one bulk call changes when the caller names no limit.
const BULK_LIMIT: u32 = 1_000;

impl Tables {
    /// The instance and its descendants, parents first.
    pub(super) fn tree_of(&self, root: &InstanceId) -> Vec<InstanceId> {
        let mut tree = vec![root.clone()];
        let mut level = vec![root.clone()];
        while !level.is_empty() {
            let is_child = |found: &Instance| found.parent.as_ref().is_some_and(|parent| level.contains(parent));
            let children = self.instances.iter().filter(|(id, found)| is_child(found) && !tree.contains(id));
            level = children.map(|(id, _)| id.clone()).collect();
            tree.extend(level.iter().cloned());
        }
        tree
    }

    pub(super) fn delete(&mut self, root: &InstanceId, force: bool) -> Result<DeleteInstanceResult, Error> {
        let found = self.instances.get(root).ok_or_else(|| Error::InstanceNotFound(root.clone()))?;
        if found.parent.is_some() {
            return Err(Error::CannotDeleteSubOrchestration(root.clone()));
        }
        let tree = self.tree_of(root);
        let runs = tree.iter().find(|id| self.instances.get(id).is_some_and(Instance::is_running));
        if let (Some(id), false) = (runs, force) {
            return Err(Error::InstanceStillRunning(id.clone()));
        }
        let mut deleted = DeleteInstanceResult::default();
        for gone in tree.iter().filter_map(|id| self.instances.remove(id)) {
            deleted.instances_deleted += 1;
            deleted.executions_deleted += gone.history.len() as u64;
            deleted.events_deleted += gone.history.values().map(|events| events.len() as u64).sum::<u64>();
            deleted.queue_messages_deleted += gone.inbox.len() as u64;
        }
        Ok(deleted)
    }

    pub(super) fn delete_bulk(&mut self, filter: &InstanceFilter) -> DeleteInstanceResult {
        let is_root = |(_, found): &(&InstanceId, &Instance)| found.parent.is_none();
        let mut ended: Vec<(Millis, InstanceId)> = self
            .instances
            .iter()
            .filter(is_root)
            .filter(|(id, found)| is_meant(filter, id, found))
            .filter_map(|(id, found)| Some((found.state.completed_at?, id.clone())))
            .collect();
        ended.sort();
        let (mut total, mut left) = (DeleteInstanceResult::default(), filter.limit.unwrap_or(BULK_LIMIT));
        for (_, root) in ended {
            if left == 0 {
                break;
            }
            // A descendant that still runs keeps its whole tree.
            let Ok(deleted) = self.delete(&root, false) else { continue };
            left -= 1;
            total.instances_deleted += deleted.instances_deleted;
            total.executions_deleted += deleted.executions_deleted;
            total.events_deleted += deleted.events_deleted;
            total.queue_messages_deleted += deleted.queue_messages_deleted;
        }
        total
    }

    pub(super) fn prune(&mut self, id: &InstanceId, options: &PruneOptions) -> Result<PruneResult, Error> {
        let found = self.instances.get_mut(id).ok_or_else(|| Error::InstanceNotFound(id.clone()))?;
        let mut pruned = PruneResult { instances_processed: 1, ..PruneResult::default() };
        for execution in found.prunable(options) {
            let events = found.history.remove(&execution).unwrap_or_default();
            pruned.executions_deleted += 1;
            pruned.events_deleted += events.len() as u64;
        }
        Ok(pruned)
    }

    pub(super) fn prune_bulk(&mut self, filter: &InstanceFilter, options: &PruneOptions) -> PruneResult {
        let mut total = PruneResult::default();
        let meant = self.instances.iter().filter(|(id, found)| is_meant(filter, id, found));
        let has_some = meant.filter(|(_, found)| !found.prunable(options).is_empty());
        let limit = filter.limit.unwrap_or(BULK_LIMIT) as usize;
        let ids: Vec<InstanceId> = has_some.map(|(id, _)| id.clone()).take(limit).collect();
        for id in ids {
            let Ok(pruned) = self.prune(&id, options) else { continue };
            total.instances_processed += 1;
            total.executions_deleted += pruned.executions_deleted;
            total.events_deleted += pruned.events_deleted;
        }
        total
    }
}

impl Instance {
    /// Executions that these options prune: none when neither option is set.
    fn prunable(&self, options: &PruneOptions) -> BTreeSet<ExecutionId> {
        let PruneOptions { keep_last, completed_before } = options;
        if keep_last.is_none() && completed_before.is_none() {
            return BTreeSet::new();
        }
        let keep = u64::from(keep_last.unwrap_or(1).max(1));
        let is_over = |execution: &ExecutionId| execution.0 + keep <= self.state.execution.0;
        let is_old = |execution: &ExecutionId| {
            let last = self.events(*execution).map(|event| event.at.0).max();
            completed_before.is_none_or(|before| last.is_some_and(|last| last < before))
        };
        self.history.keys().filter(|execution| is_over(execution) && is_old(execution)).copied().collect()
    }
}

fn is_meant(filter: &InstanceFilter, id: &InstanceId, found: &Instance) -> bool {
    let is_named = filter.instance_ids.as_ref().is_none_or(|ids| ids.iter().any(|named| named == id.as_str()));
    let ended = found.state.completed_at;
    is_named && filter.completed_before.is_none_or(|before| ended.is_some_and(|ended| ended.0 < before))
}
