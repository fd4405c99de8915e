//! What stands still on a node: found by what waits here, what goes wrong and lasts, and what the nodes say they run; reported
//! for clients to list. The store adds what it sees itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outlast_core::{ActivityItem, InstanceId, Millis};
use outlast_storage::{Shortage, Standstill, WorkerInfo};
use tokio::time::Instant;

use crate::node::Node;
use crate::telemetry::logging::{ACTIVITY, RUNTIME};
use crate::worker::Worker;

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// What has waited less is not looked at: workers come and go.
const PATIENCE: Duration = Duration::from_secs(2);
/// What comes and goes by itself is a problem when it has lasted so long.
const LASTING: Duration = Duration::from_secs(5);
/// Most problems that one node reports: the oldest.
const REPORTED_MAX: usize = 1_000;

/// Looks until the node stops, and reports what has changed.
pub(crate) async fn watch(node: Arc<Node>, worker: Arc<Worker>) {
    let mut reported: Vec<Shortage> = Vec::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = node.stopping.cancelled() => return,
        }
        let mut found = look(&node, &worker);
        found.extend(stuck(&worker, node.store.now()));
        if found == reported {
            continue;
        }
        for shortage in found.iter().filter(|new| reported.iter().all(|old| old.reason != new.reason)) {
            if node.notices.is_due(&shortage.reason) {
                let (reason, instance) = (&shortage.reason, &shortage.instance);
                tracing::warn!(target: ACTIVITY, %instance, waiting = shortage.waiting, "instances stand still: {reason}");
            }
        }
        match node.store.report_shortages(&node.id, found.clone()).await {
            Ok(()) => reported = found,
            Err(error) => tracing::warn!(target: RUNTIME, %error, "shortages were not reported, trying again"),
        }
    }
}

fn look(node: &Node, worker: &Worker) -> Vec<Shortage> {
    let mut found = Found { now: node.store.now(), by_reason: BTreeMap::new() };
    unserved(node, &mut found);
    let unserved = found.by_reason.values().map(|shortage| shortage.waiting as usize).sum();
    node.unserved.store(unserved, std::sync::atomic::Ordering::Relaxed);
    for (instance, (reason, since)) in &*node.damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
        let age = Duration::from_millis(found.now.0.saturating_sub(since.0));
        found.add(Standstill::Damaged(reason.clone()), instance, age);
    }
    for (instance, age) in node.deciding_for(LASTING) {
        found.add(Standstill::CodeBlocks, &instance, age);
    }
    for (instance, how, age) in node.troubles.turns.lasting(LASTING) {
        found.add(Standstill::TurnsFail(how), &instance, age);
    }
    if let Some((instance, age, waiting)) = node.longest_waiting().filter(|(_, age, _)| *age >= LASTING) {
        found.add_many(Standstill::NoRoom, &instance, age, waiting);
    }
    if let Some((instance, age)) = node.committer.under_way().filter(|(_, age)| *age >= LASTING) {
        found.add(Standstill::CommitTakesLong, &instance, age);
    }
    for ((), refusal, age) in node.troubles.broker.lasting(PATIENCE) {
        let instance = &refusal.first.key.instance;
        found.add_many(Standstill::BrokerRefuses(refusal.reason), instance, age, node.outstanding.len());
        found.name_orchestration(instance, &refusal.first.orchestration);
    }
    for (key, untaken, age) in node.troubles.results.lasting(LASTING) {
        found.add(Standstill::ResultNotTaken(untaken.activity), &key.instance, age);
        found.name_orchestration(&key.instance, &untaken.orchestration);
    }
    for trouble in node.broker.troubles() {
        let since = trouble.since.elapsed();
        found.add_many(Standstill::BrokerTrouble(trouble.reason), &InstanceId::new(""), since, 0);
    }
    full(worker, &mut found);
    for failing in node.supervisor.failing_tasks() {
        let what = Standstill::TaskFails { node: node.id.to_string(), what: failing.to_string() };
        found.add(what, &InstanceId::new(""), failing.since.elapsed());
    }
    let mut found: Vec<Shortage> = found.by_reason.into_values().collect();
    found.sort_by_key(|shortage| shortage.since);
    found.truncate(REPORTED_MAX);
    found
}

/// What a look has found: for each reason who waits longest and how many do.
struct Found {
    now: Millis,
    by_reason: BTreeMap<String, Shortage>,
}

impl Found {
    fn add(&mut self, what: Standstill, instance: &InstanceId, age: Duration) {
        self.add_many(what, instance, age, 1);
    }

    fn add_many(&mut self, what: Standstill, instance: &InstanceId, age: Duration, waiting: usize) {
        let since = before(self.now, age);
        let entry = self.by_reason.entry(what.to_string());
        let shortage = entry.or_insert_with_key(|reason| Shortage {
            reason: reason.clone(),
            instance: instance.clone(),
            orchestration: String::new(),
            waiting: 0,
            since,
        });
        shortage.waiting = shortage.waiting.saturating_add(u32::try_from(waiting).unwrap_or(u32::MAX));
        if since < shortage.since {
            (shortage.since, shortage.instance) = (since, instance.clone());
            shortage.orchestration.clear();
        }
    }

    /// Says whose instance it is, wherever it is the one that is named.
    fn name_orchestration(&mut self, instance: &InstanceId, orchestration: &str) {
        for shortage in self.by_reason.values_mut().filter(|shortage| shortage.instance == *instance) {
            orchestration.clone_into(&mut shortage.orchestration);
        }
    }
}

/// Activities that no worker runs.
fn unserved(node: &Node, found: &mut Found) {
    let workers = node.workers();
    node.outstanding.each_since(|item, since| {
        let waited = Instant::now().saturating_duration_since(since);
        if waited < PATIENCE {
            return;
        }
        let Some(what) = missing(item, &workers) else { return };
        let reason = what.to_string();
        found.add(what, &item.key.instance, waited);
        if let Some(shortage) = found.by_reason.get_mut(&reason)
            && shortage.instance == item.key.instance
        {
            shortage.orchestration.clone_from(&item.orchestration);
        }
    });
}

/// Slots and sessions of which none has come free for a while, when something waits for them.
fn full(worker: &Worker, found: &mut Found) {
    let name = || worker.id.as_str().to_owned();
    let longest = || {
        let running = worker.lock_running();
        let begun = running.iter().filter_map(|(activity, running)| Some((running.begun?, activity)));
        let first = begun.min_by_key(|(begun, _)| *begun);
        first.map_or_else(|| InstanceId::new(""), |(_, activity)| activity.key.instance.clone())
    };
    for ((), _, age) in worker.troubles.slots.lasting(LASTING).into_iter().filter(|(_, slots, _)| slots.waits) {
        let what = match worker.unwanted() {
            Some(activity) => Standstill::UnwantedRuns { worker: name(), activity },
            None => Standstill::SlotsTaken { worker: name(), slots: worker.options.worker_concurrency },
        };
        found.add(what, &longest(), age);
    }
    for ((), sessions, age) in worker.troubles.sessions.lasting(LASTING) {
        if sessions.waits {
            let sessions = worker.options.max_sessions_per_runtime;
            found.add(Standstill::SessionsTaken { worker: name(), sessions }, &longest(), age);
        }
    }
}

/// A worker that can take no work, as what it runs is not wanted and does not end.
fn stuck(worker: &Worker, now: Millis) -> Option<Shortage> {
    let (activity, age, count) = worker.stuck_for(PATIENCE)?;
    Some(Shortage {
        reason: format!(
            "all {count} slots of worker {} are taken by activities that nobody wants and that do not end: let their code \
             heed ActivityContext::cancelled",
            worker.id
        ),
        instance: activity.key.instance,
        orchestration: String::new(),
        waiting: u32::try_from(count).unwrap_or(u32::MAX),
        since: before(now, age),
    })
}

fn before(now: Millis, age: Duration) -> Millis {
    Millis(now.0.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)))
}

/// Why no worker runs an activity; `None` when one does.
fn missing(item: &ActivityItem, workers: &[WorkerInfo]) -> Option<Standstill> {
    let takes = |worker: &&WorkerInfo| worker.filter.matches(item.tag.as_deref());
    let mut takers = workers.iter().filter(takes).peekable();
    if takers.peek().is_none() {
        return Some(Standstill::NoWorker(item.tag.clone()));
    }
    let runs = takers.any(|worker| worker.activities.contains(&item.name));
    (!runs).then(|| Standstill::NoActivity { tag: item.tag.clone(), activity: item.name.clone() })
}
