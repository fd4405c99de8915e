//! Finds what stands still on a node, from what waits here, lasting troubles and what the nodes say they run, and reports it for
//! clients to list. The store adds what it sees itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outlast_core::{ActivityItem, InstanceId, Millis};
use outlast_storage::{Shortage, Standstill, WorkerInfo};
use tokio::time::Instant;

use crate::instances::committer::Committer;
use crate::shards::owner::Owner;
use crate::telemetry::logging::{ACTIVITY, RUNTIME};
use crate::worker::{Unwanted, Worker};

/// Time between two looks: with the patience below, what stands still is listed well within ten seconds.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// What has waited for less is ignored: workers come and go.
const PATIENCE: Duration = Duration::from_secs(2);
/// A trouble that may pass by itself is a problem once it has lasted this long.
const LASTING: Duration = Duration::from_secs(5);
/// Most problems that one node reports; the oldest are kept. They are written to the store at every look.
const REPORTED_MAX: usize = 1_000;

/// What is looked at.
pub(crate) struct Watched {
    pub(crate) owner: Arc<Owner>,
    pub(crate) committer: Committer,
    pub(crate) worker: Arc<Worker>,
}

/// Looks regularly until the node stops, and reports changes.
pub(crate) async fn watch(watched: Arc<Watched>) {
    let owner = &watched.owner;
    let mut reported: Vec<Shortage> = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = owner.stopping.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let found = look(&watched);
        if found == reported {
            continue;
        }
        for shortage in found.iter().filter(|new| reported.iter().all(|old| old.reason != new.reason)) {
            if owner.problems.notices.is_due(&shortage.reason) {
                let (reason, instance) = (&shortage.reason, &shortage.instance);
                tracing::warn!(target: ACTIVITY, %instance, waiting = shortage.waiting, "instances stand still: {reason}");
            }
        }
        match owner.store.report_shortages(&owner.id, found.clone()).await {
            Ok(()) => reported = found,
            Err(error) => tracing::warn!(target: RUNTIME, %error, "shortages were not reported, trying again"),
        }
    }
}

fn look(watched: &Watched) -> Vec<Shortage> {
    let owner = &watched.owner;
    let mut found = Found { now: owner.store.now(), by_reason: BTreeMap::new() };
    unserved(owner, &mut found);
    let unserved = found.by_reason.values().map(|shortage| shortage.waiting as usize).sum();
    owner.problems.set_unserved(unserved);
    instances(watched, &mut found);
    let (troubles, outstanding) = (&owner.problems.troubles, owner.dispatcher.outstanding.len());
    for ((), refusal, age) in troubles.broker.lasting(PATIENCE) {
        let instance = &refusal.first.key.instance;
        found.add_many(Standstill::BrokerRefuses(refusal.reason), instance, age, outstanding);
        found.name_orchestration(instance, &refusal.first.orchestration);
    }
    for (key, untaken, age) in troubles.results.lasting(LASTING) {
        found.add(Standstill::ResultNotTaken(untaken.activity), &key.instance, age);
        found.name_orchestration(&key.instance, &untaken.orchestration);
    }
    for trouble in owner.broker.state().troubles {
        let since = trouble.since.elapsed();
        found.add_many(Standstill::BrokerTrouble(trouble.reason), &InstanceId::new(""), since, 0);
    }
    full(&watched.worker, &mut found);
    for failing in owner.supervisor.failing_tasks() {
        let what = Standstill::TaskFails { node: owner.id.to_string(), what: failing.to_string() };
        found.add(what, &InstanceId::new(""), failing.since.elapsed());
    }
    let mut found: Vec<Shortage> = found.by_reason.into_values().collect();
    found.sort_by_key(|shortage| shortage.since);
    found.truncate(REPORTED_MAX);
    found
}

/// Instances that cannot go on: damaged, or waiting for code to return, a turn to succeed, room or a commit.
fn instances(watched: &Watched, found: &mut Found) {
    let problems = &watched.owner.problems;
    for (instance, reason, since) in problems.damaged() {
        let age = Duration::from_millis(found.now.0.saturating_sub(since.0));
        found.add(Standstill::Damaged(reason), &instance, age);
    }
    for (instance, age) in problems.deciding_for(LASTING) {
        found.add(Standstill::CodeBlocks, &instance, age);
    }
    for (instance, how, age) in problems.troubles.turns.lasting(LASTING) {
        found.add(Standstill::TurnsFail(how), &instance, age);
    }
    if let Some((instance, age, waiting)) = watched.owner.warm.longest_waiting().filter(|(_, age, _)| *age >= LASTING) {
        found.add_many(Standstill::NoRoom, &instance, age, waiting);
    }
    if let Some((instance, age)) = watched.committer.under_way().filter(|(_, age)| *age >= LASTING) {
        found.add(Standstill::CommitTakesLong, &instance, age);
    }
}

/// What a look has found: for each reason, who waits longest and how many wait.
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

    /// Sets the orchestration wherever this instance is the one that is named.
    fn name_orchestration(&mut self, instance: &InstanceId, orchestration: &str) {
        for shortage in self.by_reason.values_mut().filter(|shortage| shortage.instance == *instance) {
            orchestration.clone_into(&mut shortage.orchestration);
        }
    }
}

/// Activities that no worker runs.
fn unserved(owner: &Owner, found: &mut Found) {
    let workers = owner.neighbours.workers();
    owner.dispatcher.outstanding.each_since(|item, since| {
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

/// Reports slots and sessions of which none has come free for a while: if something waits for one, or if all slots run code that
/// nobody wants.
fn full(worker: &Worker, found: &mut Found) {
    let name = || worker.id.as_str().to_owned();
    let longest = || worker.longest_running().unwrap_or_else(|| InstanceId::new(""));
    let slots = worker.options.worker_concurrency;
    for ((), taken, age) in worker.troubles.slots.lasting(PATIENCE) {
        let others_wait = taken.waits && age >= LASTING;
        match worker.unwanted_for(PATIENCE) {
            Some(Unwanted { activity, instance, age, count: unwanted }) if others_wait || unwanted >= slots => {
                let what = Standstill::UnwantedRuns { worker: name(), activity, unwanted, slots };
                found.add_many(what, &instance, age, unwanted);
            }
            _ if others_wait => found.add(Standstill::SlotsTaken { worker: name(), slots }, &longest(), age),
            _ => {}
        }
    }
    for ((), taken, age) in worker.troubles.sessions.lasting(LASTING) {
        if taken.waits {
            let sessions = worker.options.max_sessions_per_runtime;
            found.add(Standstill::SessionsTaken { worker: name(), sessions }, &longest(), age);
        }
    }
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
