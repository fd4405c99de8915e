//! What a runtime counts since its start.

use std::sync::atomic::{AtomicU64, Ordering};

use outlast_core::{ActivityOutcome, ErrorDetails, EventKind, Turn};

/// Counts since the runtime's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// Committed turns.
    pub turns: u64,
    /// Turns whose commit was refused or had an unknown outcome.
    pub commits_failed: u64,
    /// Instances read from the store.
    pub hydrations: u64,
    /// Activities handed to the broker.
    pub activities_dispatched: u64,
    /// Instances in memory now.
    pub warm_instances: usize,
    /// Activities whose code is running now, even if nobody waits for it any more.
    pub activities_running: usize,
    /// Instances whose first turn was committed; continue-as-new is counted separately.
    pub orch_starts: u64,
    /// Instances that ended with `Ok`.
    pub orch_completions: u64,
    /// Instances that failed, cancelled ones included.
    pub orch_failures: u64,
    /// Those whose own code failed, or that were cancelled.
    pub orch_application_errors: u64,
    /// Those that failed because of the system beneath.
    pub orch_infrastructure_errors: u64,
    /// Those whose code did not follow their history.
    pub orch_configuration_errors: u64,
    /// Those that were given up after too many tries.
    pub orch_poison: u64,
    /// Activities whose code returned `Ok` here.
    pub activity_success: u64,
    /// Activities whose code returned an error, panicked or missed a deadline here.
    pub activity_app_errors: u64,
    /// Always 0: a worker that cannot go on gives its work back.
    pub activity_infra_errors: u64,
    /// Always 0, as nothing of an activity is replayed.
    pub activity_config_errors: u64,
    /// Activities that were given up because no worker has registered them.
    pub activity_poison: u64,
    /// Turns, committed or not.
    pub orch_dispatcher_items_fetched: u64,
    /// Activities that this runtime's worker was given.
    pub worker_dispatcher_items_fetched: u64,
    /// Executions that continued as new.
    pub orch_continue_as_new: u64,
    /// Children that were scheduled.
    pub suborchestration_calls: u64,
    /// Commits and reads that the store refused or did not answer.
    pub provider_errors: u64,
}

/// The counts themselves, shared by node and worker.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) turns: AtomicU64,
    pub(crate) commits_failed: AtomicU64,
    pub(crate) hydrations: AtomicU64,
    pub(crate) dispatched: AtomicU64,
    pub(crate) reads_failed: AtomicU64,
    pub(crate) taken: AtomicU64,
    pub(crate) activity_success: AtomicU64,
    pub(crate) activity_errors: AtomicU64,
    pub(crate) activity_poison: AtomicU64,
    outcomes: TurnCounters,
}

#[derive(Default)]
struct TurnCounters {
    starts: AtomicU64,
    completions: AtomicU64,
    application_errors: AtomicU64,
    infrastructure_errors: AtomicU64,
    configuration_errors: AtomicU64,
    poison: AtomicU64,
    continued: AtomicU64,
    children: AtomicU64,
}

/// Counts from the events of a turn, kept until they are committed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    starts: u64,
    completions: u64,
    application_errors: u64,
    infrastructure_errors: u64,
    configuration_errors: u64,
    poison: u64,
    continued: u64,
    children: u64,
}

impl Tally {
    pub(crate) fn of(turn: &Turn) -> Self {
        let mut tally = Self::default();
        for (_, event) in &turn.events {
            match &event.kind {
                EventKind::OrchestrationStarted { .. } => tally.starts += 1,
                EventKind::OrchestrationCompleted { .. } => tally.completions += 1,
                EventKind::OrchestrationContinuedAsNew { .. } => tally.continued += 1,
                EventKind::SubOrchestrationScheduled { .. } => tally.children += 1,
                EventKind::OrchestrationFailed { details } => match details {
                    ErrorDetails::Application { .. } => tally.application_errors += 1,
                    ErrorDetails::Infrastructure { .. } => tally.infrastructure_errors += 1,
                    ErrorDetails::Configuration { .. } => tally.configuration_errors += 1,
                    ErrorDetails::Poison { .. } => tally.poison += 1,
                },
                _ => {}
            }
        }
        // The execution that follows a continue-as-new begins in the same turn.
        tally.starts = tally.starts.saturating_sub(tally.continued);
        tally
    }
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A turn is durable.
    pub(crate) fn committed(&self, tally: &Tally) {
        Self::count(&self.turns);
        let outcomes = &self.outcomes;
        for (counter, count) in [
            (&outcomes.starts, tally.starts),
            (&outcomes.completions, tally.completions),
            (&outcomes.application_errors, tally.application_errors),
            (&outcomes.infrastructure_errors, tally.infrastructure_errors),
            (&outcomes.configuration_errors, tally.configuration_errors),
            (&outcomes.poison, tally.poison),
            (&outcomes.continued, tally.continued),
            (&outcomes.children, tally.children),
        ] {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// User code of an activity has ended.
    pub(crate) fn ran(&self, outcome: &ActivityOutcome) {
        Self::count(if outcome.is_ok() { &self.activity_success } else { &self.activity_errors });
    }

    /// All counts, with what is in memory and running now.
    pub(crate) fn snapshot(&self, warm_instances: usize, activities_running: usize) -> MetricsSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let outcomes = &self.outcomes;
        let [application, infrastructure, configuration, poison] = [
            &outcomes.application_errors,
            &outcomes.infrastructure_errors,
            &outcomes.configuration_errors,
            &outcomes.poison,
        ]
        .map(read);
        let (turns, commits_failed) = (read(&self.turns), read(&self.commits_failed));
        MetricsSnapshot {
            turns,
            commits_failed,
            hydrations: read(&self.hydrations),
            activities_dispatched: read(&self.dispatched),
            warm_instances,
            activities_running,
            orch_starts: read(&outcomes.starts),
            orch_completions: read(&outcomes.completions),
            orch_failures: application + infrastructure + configuration + poison,
            orch_application_errors: application,
            orch_infrastructure_errors: infrastructure,
            orch_configuration_errors: configuration,
            orch_poison: poison,
            activity_success: read(&self.activity_success),
            activity_app_errors: read(&self.activity_errors),
            activity_infra_errors: 0,
            activity_config_errors: 0,
            activity_poison: read(&self.activity_poison),
            orch_dispatcher_items_fetched: turns + commits_failed,
            worker_dispatcher_items_fetched: read(&self.taken),
            orch_continue_as_new: read(&outcomes.continued),
            suborchestration_calls: read(&outcomes.children),
            provider_errors: commits_failed + read(&self.reads_failed),
        }
    }
}
