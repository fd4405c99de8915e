//! What becomes of an instance in memory when its commit succeeds, fails, or nobody knows.

use outlast_core::{ActivityRef, ErrorDetails, TurnInput};
use outlast_storage::{FencedTurn, TurnOutcome};

use crate::instances::announcement::Announcement;
use crate::instances::committer::{Committed, Decided};
use crate::instances::run_turn::{InstanceRun, Obstacle};
use crate::telemetry::counters::Counters;
use crate::telemetry::logging::RUNTIME;

impl InstanceRun {
    /// A commit has shown that memory is as the store has it. Returns what was outstanding before: a start that was fresh had
    /// nothing yet, so it is of another life of the id.
    pub(crate) fn confirm(&mut self) -> Vec<ActivityRef> {
        let Some(hydrated) = self.warm.as_mut().filter(|hydrated| !hydrated.is_confirmed) else { return Vec::new() };
        hydrated.is_confirmed = true;
        self.engine.dispatcher.outstanding.keep_of(&self.instance, &[])
    }

    /// Checks the outcome of a commit; any outcome but success means that memory is stale.
    pub(crate) async fn check(&mut self, committed: Committed) -> Result<(), Obstacle> {
        match committed {
            Committed::Outcome(TurnOutcome::Committed { .. }) => return Ok(()),
            Committed::Outcome(TurnOutcome::Conflict) => self.note_failure("the store has another state of it"),
            Committed::Outcome(TurnOutcome::Fenced) => self.note_failure("another node has its shard"),
            Committed::Unknown => self.note_failure("whether it was written is not known"),
            Committed::Outcome(TurnOutcome::Refused(reason)) => {
                tracing::error!(target: RUNTIME, instance = %self.instance, %reason, "the store refused a turn for good");
                self.fail_refused(reason).await;
            }
        }
        Counters::count(&self.engine.counters.commits_failed);
        self.again_later();
        Err(Obstacle::Again)
    }

    /// Fails the instance, since a turn that the store refuses for good would be decided again and again.
    async fn fail_refused(&mut self, reason: String) {
        self.warm = None;
        if self.hydrate().await.is_err() {
            return;
        }
        let Some(hydrated) = self.warm.as_mut() else { return };
        let details =
            ErrorDetails::Infrastructure { operation: "commit a turn".to_owned(), message: reason, retryable: false };
        let input = TurnInput {
            now: self.engine.store.now(),
            seed: self.engine.surroundings.random_bits(),
            messages: self.backlog.drain(..).collect(),
        };
        let mut turn = hydrated.instance.fail(input, details);
        turn.effects.clear();
        let (shard, epoch, instance) = (hydrated.shard, hydrated.epoch, self.instance.clone());
        let before = hydrated.stored.clone();
        let announcement = Announcement::new(&instance, &before, &mut turn, hydrated.instance.begun_by(), false);
        let turn = FencedTurn { instance, shard, epoch, before, turn, move_to: None, mailed: None };
        let outcome = self.engine.committer.commit(Box::new(Decided { turn, announcement })).await;
        tracing::error!(target: RUNTIME, instance = %self.instance, ?outcome, "tried to fail the instance instead");
        if let Committed::Outcome(TurnOutcome::Refused(reason)) = outcome {
            let now = self.engine.store.now();
            self.engine.problems.note_damaged(&self.instance, format!("stored data is damaged: {reason}"), now);
        }
        self.engine.broker.publish_status(&self.instance, None, None);
    }
}
