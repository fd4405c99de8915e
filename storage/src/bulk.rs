//! Deleting and pruning many: pages of candidates, until as many as wanted have changed or there are no more.
//!
//! Candidates that cannot change (a tree in which something runs, an instance with nothing to prune) are passed over, so repeated
//! calls get on however many of them there are. Each page is a short read, and each change a durable step of its own.

use async_trait::async_trait;
use futures::future::join_all;
use outlast_core::InstanceId;

use crate::{CallStore, DeleteInstanceResult, DeleteOptions, Error, InstanceFilter, PruneOptions, PruneResult};

/// Instances that one bulk call changes when the caller names no limit: seconds of work, so that a slip of a filter can be stopped.
const BULK_LIMIT: u32 = 1_000;
/// Ended roots in a page: a page is read in milliseconds, and its deletions take far longer.
const ROOTS_PAGE: u32 = 1_000;
/// Instances that are looked through for one page of those that can be pruned: an index read, in which most are passed over.
pub(crate) const PRUNE_PAGE: u32 = 10_000;

/// A root that has ended.
#[derive(Clone, Debug)]
pub(crate) struct EndedRoot {
    /// When, by the store's clock.
    pub(crate) completed: i64,
    pub(crate) id: String,
}

/// Instances that can be pruned, among some that were looked through.
pub(crate) struct PrunePage {
    pub(crate) ids: Vec<String>,
    /// The last one that was looked through; `None` when there are no more.
    pub(crate) last: Option<String>,
}

/// Where bulk operations find their candidates.
#[async_trait]
pub(crate) trait Candidates: CallStore {
    /// Changes that are under way at once.
    const AT_ONCE: usize;

    /// Ended roots with no child that runs, in the order of their end, behind `after`; only of `ids` when given.
    async fn ended_roots(&self, asked: &Bulk, after: Option<EndedRoot>, max: u32) -> Result<Vec<EndedRoot>, Error>;

    /// Looks through instances by id behind `after`, or through `ids` when given, for those with something to prune.
    async fn prunable(&self, asked: &Bulk, after: &str) -> Result<PrunePage, Error>;
}

/// What a bulk operation is for, in the numbers of a store.
#[derive(Clone, Debug)]
pub(crate) struct Bulk {
    /// Only these.
    pub(crate) ids: Option<Vec<String>>,
    /// Only instances that ended before this moment.
    pub(crate) completed_before: Option<i64>,
    /// Executions that stay, the current one included.
    pub(crate) keep_last: i64,
    /// Only executions that ended before this moment.
    pub(crate) ended_before: i64,
}

impl Bulk {
    fn new(filter: &InstanceFilter, options: &PruneOptions) -> Self {
        Self {
            ids: filter.instance_ids.clone(),
            completed_before: filter.completed_before.map(|_| filter.before()),
            keep_last: options.keep_last.map_or(1, |keep| i64::from(keep.max(1))),
            ended_before: options.before().unwrap_or(i64::MAX),
        }
    }
}

pub(crate) async fn delete<S: Candidates>(store: &S, filter: &InstanceFilter) -> Result<DeleteInstanceResult, Error> {
    let asked = Bulk::new(filter, &PruneOptions::default());
    let mut left = filter.limit.unwrap_or(BULK_LIMIT) as usize;
    let (mut total, mut after) = (DeleteInstanceResult::default(), None);
    while left > 0 {
        let page = store.ended_roots(&asked, after.take(), ROOTS_PAGE).await?;
        let Some(last) = page.last().cloned() else { break };
        after = Some(last);
        let mut roots = page.into_iter().map(|root| InstanceId::from(root.id)).peekable();
        while left > 0 && roots.peek().is_some() {
            let some: Vec<InstanceId> = roots.by_ref().take(S::AT_ONCE.min(left)).collect();
            for deleted in join_all(some.iter().map(|id| store.delete(id, DeleteOptions::first_try(false)))).await {
                match deleted {
                    Ok(deleted) => {
                        left -= 1;
                        total.instances_deleted += deleted.instances_deleted;
                        total.executions_deleted += deleted.executions_deleted;
                        total.events_deleted += deleted.events_deleted;
                        total.queue_messages_deleted += deleted.queue_messages_deleted;
                    }
                    // A descendant that still runs keeps its tree; one that is gone was deleted by somebody else; one that is a
                    // child by now has begun anew as such.
                    Err(
                        Error::InstanceStillRunning(_)
                        | Error::InstanceNotFound(_)
                        | Error::CannotDeleteSubOrchestration(_),
                    ) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(total)
}

pub(crate) async fn prune<S: Candidates>(
    store: &S,
    filter: &InstanceFilter,
    options: &PruneOptions,
) -> Result<PruneResult, Error> {
    let mut total = PruneResult::default();
    if options.keep_last.is_none() && options.completed_before.is_none() {
        return Ok(total);
    }
    let asked = Bulk::new(filter, options);
    let mut left = filter.limit.unwrap_or(BULK_LIMIT) as usize;
    let mut after = String::new();
    while left > 0 {
        let page = store.prunable(&asked, &after).await?;
        let mut ids = page.ids.into_iter().map(InstanceId::from).peekable();
        while left > 0 && ids.peek().is_some() {
            let some: Vec<InstanceId> = ids.by_ref().take(S::AT_ONCE.min(left)).collect();
            for pruned in join_all(some.iter().map(|id| store.prune(id, options.clone()))).await {
                match pruned {
                    Ok(pruned) => {
                        left -= 1;
                        total.instances_processed += 1;
                        total.executions_deleted += pruned.executions_deleted;
                        total.events_deleted += pruned.events_deleted;
                    }
                    // Deleted meanwhile.
                    Err(Error::InstanceNotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let Some(last) = page.last else { break };
        after = last;
    }
    Ok(total)
}
