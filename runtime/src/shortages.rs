//! Work that nobody serves, instances that cannot be read and code that does not come back: found by what waits here and what
//! the nodes say they run, reported for clients to list.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outlast_core::{ActivityItem, Millis};
use outlast_storage::{Shortage, WorkerInfo};

use crate::node::Node;
use crate::notices::no_worker_has;
use crate::observability::{ACTIVITY, RUNTIME};

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// What has waited less is not looked at: workers come and go.
const PATIENCE: Duration = Duration::from_secs(2);
/// Code of an orchestration that does not come back for so long holds up whatever shares its thread.
const TURN_MAX: Duration = Duration::from_secs(5);

/// Looks until the node stops, and reports what has changed.
pub(crate) async fn watch(node: Arc<Node>) {
    let mut reported: Vec<Shortage> = Vec::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = node.stopping.cancelled() => return,
        }
        let found = look(&node);
        if found == reported {
            continue;
        }
        for shortage in found.iter().filter(|new| reported.iter().all(|old| old.reason != new.reason)) {
            if node.notices.is_due(&shortage.reason) {
                let (reason, instance) = (&shortage.reason, &shortage.instance);
                tracing::warn!(target: ACTIVITY, %instance, waiting = shortage.waiting, "work waits: {reason}");
            }
        }
        match node.store.report_shortages(&node.id, found.clone()).await {
            Ok(()) => reported = found,
            Err(error) => tracing::warn!(target: RUNTIME, %error, "shortages were not reported, trying again"),
        }
    }
}

fn look(node: &Node) -> Vec<Shortage> {
    let workers = node.workers();
    let now = node.store.now();
    let mut shortages: BTreeMap<String, Shortage> = BTreeMap::new();
    node.outstanding.each_since(|item, since| {
        let waited = Instant::now().saturating_duration_since(since);
        if waited < PATIENCE {
            return;
        }
        let Some(reason) = missing(item, &workers) else { return };
        let since = before(now, waited);
        let shortage = shortages.entry(reason).or_insert_with_key(|reason| Shortage {
            reason: reason.clone(),
            instance: item.key.instance.clone(),
            orchestration: item.orchestration.clone(),
            waiting: 0,
            since,
        });
        shortage.waiting += 1;
        if since < shortage.since {
            shortage.since = since;
            shortage.instance = item.key.instance.clone();
            shortage.orchestration.clone_from(&item.orchestration);
        }
    });
    let unserved = shortages.values().map(|shortage| shortage.waiting as usize).sum();
    node.unserved.store(unserved, std::sync::atomic::Ordering::Relaxed);
    let damaged = node.damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let unreadable = damaged.iter().map(|(instance, (reason, since))| Shortage {
        reason: reason.clone(),
        instance: instance.clone(),
        orchestration: String::new(),
        waiting: 1,
        since: *since,
    });
    let slow = node.deciding_for(TURN_MAX).into_iter().map(|(instance, age)| Shortage {
        reason: format!(
            "the code of an orchestration has not come back for {TURN_MAX:?}: move what blocks it into an activity"
        ),
        instance,
        orchestration: String::new(),
        waiting: 1,
        since: before(now, age),
    });
    shortages.into_values().chain(unreadable).chain(slow).collect()
}

fn before(now: Millis, age: Duration) -> Millis {
    Millis(now.0.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)))
}

/// Why no worker runs an activity; `None` when one does.
fn missing(item: &ActivityItem, workers: &[WorkerInfo]) -> Option<String> {
    let takes = |worker: &&WorkerInfo| worker.filter.matches(item.tag.as_deref());
    let mut takers = workers.iter().filter(takes).peekable();
    if takers.peek().is_none() {
        return Some(match &item.tag {
            Some(tag) => format!("no worker takes the tag {tag:?}"),
            None => "no worker takes activities without a tag".to_owned(),
        });
    }
    let runs = takers.any(|worker| worker.activities.contains(&item.name));
    (!runs).then(|| match &item.tag {
        Some(tag) => format!("no worker with the tag {tag:?} has registered activity {}", item.name),
        None => no_worker_has(&item.name),
    })
}
