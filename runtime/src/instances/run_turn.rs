//! A turn from end to end: load, decide, commit, dispatch.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use outlast_broker::{ReportReply, ShardNotice};
use outlast_core::{
    ActivityKey, Decision, Epoch, ErrorDetails, InboxSeq, Incoming, InstanceId, InstanceState, InstanceStatus, Limits,
    MessageId, ShardId, TURN_MESSAGE_BYTES_MAX, Token, Turn, TurnInput, Verdict, WarmInstance,
};
use outlast_storage::{FencedTurn, InboxCursor, Mailed};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::dispatch::outstanding::{Place, Terms};
use crate::instances::announcement::Announcement;
use crate::instances::committer::Decided;
use crate::instances::effects::apply_effects;
use crate::instances::engine::Engine;
use crate::instances::mailbox::{Inbound, Mailboxes};
use crate::telemetry::counters::Counters;
use crate::telemetry::logging::{ORCHESTRATION, RUNTIME};

/// Pause after a turn whose outcome is unknown, so that a store that is away is not hammered.
const RETRY_DELAY: Duration = Duration::from_millis(50);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);

/// What becomes of the actor after a turn.
pub(crate) enum After {
    /// Keep it warm.
    Stay,
    /// The instance has ended, is not here, or must be read again from the store.
    Leave,
}

/// The state of an instance's actor.
pub(crate) struct InstanceRun {
    pub(crate) engine: Arc<Engine>,
    pub(crate) instance: InstanceId,
    pub(crate) warm: Option<Hydrated>,
    /// Messages received and not applied yet.
    pub(crate) backlog: VecDeque<Incoming>,
    pub(crate) answers: BTreeMap<MessageId, oneshot::Sender<ReportReply>>,
    pub(crate) asked: Vec<Asked>,
    pub(crate) trace: crate::telemetry::spans::InstanceTrace,
    pub(crate) again: bool,
    pub(crate) failures: u32,
}

/// A worker's question whether an activity is wanted.
pub(crate) struct Asked {
    pub(crate) key: ActivityKey,
    pub(crate) token: Token,
    pub(crate) answer: oneshot::Sender<ReportReply>,
}

/// An instance in memory, and the epoch by which this node runs it.
pub(crate) struct Hydrated {
    pub(crate) instance: WarmInstance,
    pub(crate) shard: ShardId,
    pub(crate) epoch: Epoch,
    /// The tenure's generation when it was read.
    pub(crate) generation: u64,
    /// Where the next read of the inbox begins.
    pub(crate) cursor: InboxCursor,
    /// Rows that were read and are still in the inbox: the next read may return them again.
    pub(crate) waiting: BTreeSet<InboxSeq>,
    /// The row as the store has it.
    pub(crate) stored: InstanceState,
    /// The start that came with the broker's notice, until a commit has compared it with its row.
    pub(crate) mailed: Option<Mailed>,
    /// It was read, or a commit has shown that it is as the store has it.
    pub(crate) is_confirmed: bool,
}

/// Why a turn could not be made.
pub(crate) enum Obstacle {
    /// The instance does not exist.
    Missing,
    /// Another node has it.
    Elsewhere(ShardId),
    /// The store did not answer, or answered that memory is stale.
    Again,
}

impl InstanceRun {
    pub(crate) fn new(engine: Arc<Engine>, instance: InstanceId) -> Self {
        let (backlog, answers, asked) = (VecDeque::new(), BTreeMap::new(), Vec::new());
        let trace = crate::telemetry::spans::InstanceTrace::default();
        Self { engine, instance, warm: None, backlog, answers, asked, trace, again: false, failures: 0 }
    }

    /// Whether there is work besides the input in the mailbox.
    pub(crate) fn has_backlog(&self) -> bool {
        self.again || !self.backlog.is_empty()
    }

    /// Runs one turn. Nothing is shown to the outside before the commit is durable.
    pub(crate) async fn turn(&mut self, inbound: Vec<Inbound>) -> After {
        let result = self.try_turn(inbound).await;
        let obstacle = match result {
            Ok(after) => {
                self.failures = 0;
                self.engine.problems.troubles.turns.end(&self.instance);
                return after;
            }
            Err(obstacle) => obstacle,
        };
        if !matches!(obstacle, Obstacle::Again) {
            self.engine.problems.troubles.turns.end(&self.instance);
        }
        self.warm = None;
        self.backlog.clear();
        self.again = false;
        let reply = match obstacle {
            Obstacle::Missing => {
                let to_stop = self.engine.dispatcher.outstanding.keep_of(&self.instance, &[]);
                self.engine.dispatcher.stop_activities(to_stop).await;
                ReportReply::Settled(Verdict::Unknown)
            }
            Obstacle::Elsewhere(shard) => {
                self.engine.broker.notify(shard, ShardNotice::Nudge(self.instance.clone()));
                ReportReply::Moved(shard)
            }
            Obstacle::Again => {
                self.back_off().await;
                ReportReply::TryAgain
            }
        };
        let asked = self.asked.drain(..).map(|asked| asked.answer);
        for answer in std::mem::take(&mut self.answers).into_values().chain(asked) {
            let _gone = answer.send(reply);
        }
        After::Leave
    }

    async fn try_turn(&mut self, inbound: Vec<Inbound>) -> Result<After, Obstacle> {
        self.load(inbound).await?;
        // The shard may be lost during this wait; then the store refuses the commit, since it carries the epoch of the load.
        let room = Arc::clone(&self.engine.turns).acquire_owned().await.expect("it is never closed");
        let Some(hydrated) = self.warm.as_mut() else { return Err(Obstacle::Missing) };
        self.trace.turn_begins();
        let input = TurnInput {
            now: self.engine.store.now(),
            seed: self.engine.surroundings.random_bits(),
            messages: take_messages(&mut self.backlog, &self.engine.limits),
        };
        let decision = {
            let _deciding = self.engine.problems.decides(&self.instance);
            let handlers = &self.engine.orchestrations;
            // Tokio's poll budget must not make the awaits of the user's code pend.
            tokio::task::coop::unconstrained(async { hydrated.instance.decide(input, handlers) }).await
        };
        let (turn, move_to) = match decision {
            Decision::Turn(turn) => (*turn, None),
            Decision::Unregistered { name, version, messages } => self.without_code(name, version, messages),
        };
        self.commit(turn, move_to, room).await
    }

    /// This node lacks the code: moves the instance to a node that has it, or waits, or fails after `max_attempts`.
    fn without_code(
        &mut self,
        name: String,
        version: Option<String>,
        messages: Vec<Incoming>,
    ) -> (Turn, Option<ShardId>) {
        let engine = &self.engine;
        let now = engine.store.now();
        let hydrated = self.warm.as_mut().expect("decided just now");
        if let Some(shard) = engine.neighbours.shard_that_serves(&name, version.as_deref()) {
            return (hydrated.instance.stall(now, Duration::ZERO, "moving", messages), Some(shard));
        }
        let tries = hydrated.instance.state().stalled;
        let wanted = version.map_or(name.clone(), |version| format!("{name} {version}"));
        let due = hydrated.instance.state().wake_at.is_none_or(|at| at <= now);
        if due && tries + 1 >= engine.options.max_attempts {
            let details = ErrorDetails::Poison {
                attempt_count: tries + 1,
                max_attempts: engine.options.max_attempts,
                message_type: format!("orchestration {wanted}"),
                message: "no node has registered it: register it, or check its name and version".to_owned(),
            };
            let input = TurnInput { now, seed: engine.surroundings.random_bits(), messages };
            return (hydrated.instance.fail(input, details), None);
        }
        let missing = format!("no node has registered orchestration {wanted}");
        if engine.problems.notices.is_due(&missing) {
            tracing::warn!(
                target: ORCHESTRATION, instance = %self.instance, tries,
                "{missing}: register it, or check its name and version; instances wait for it and fail after {} tries",
                engine.options.max_attempts
            );
        }
        let delay = engine.options.unregistered_backoff.delay(tries + 1);
        (hydrated.instance.stall(now, delay, "unregistered orchestration", messages), None)
    }

    async fn commit(
        &mut self,
        mut turn: Turn,
        move_to: Option<ShardId>,
        room: OwnedSemaphorePermit,
    ) -> Result<After, Obstacle> {
        let hydrated = self.warm.as_mut().expect("decided just now");
        let (shard, epoch, generation) = (move_to.unwrap_or(hydrated.shard), hydrated.epoch, hydrated.generation);
        let place = Place { shard, epoch, generation };
        let terms = Terms { place, now: self.engine.store.now(), may_have_run: false };
        let (verdicts, reload) = (std::mem::take(&mut turn.verdicts), turn.reload);
        self.again = turn.again;
        let begun_by = hydrated.instance.begun_by();
        let effects;
        let announcement = Announcement::new(&self.instance, &hydrated.stored, &mut turn, begun_by, move_to.is_some());
        if turn.is_empty(&hydrated.stored) && move_to.is_none() {
            if !verdicts.is_empty() && !self.engine.tenure.speaks_for(hydrated.shard, hydrated.epoch) {
                // Another node may hold the shard by now and know better: the worker asks again.
                return Err(Obstacle::Again);
            }
            announcement.log();
            effects = turn.effects;
        } else {
            let span = self.trace.turn(&self.instance, &mut turn);
            effects = std::mem::take(&mut turn.effects);
            // Set before the outcome is known: every outcome but success drops this memory.
            let before = std::mem::replace(&mut hydrated.stored, turn.state.clone());
            let held = !turn.held.is_empty();
            for seq in &turn.consumed {
                hydrated.waiting.remove(seq);
            }
            let (shard, epoch) = (hydrated.shard, hydrated.epoch);
            let instance = self.instance.clone();
            let outcomes = crate::dispatch::outstanding::outcomes(&self.instance, &turn.events);
            let mailed = hydrated.mailed.take_if(|mailed| turn.consumed.contains(&mailed.seq));
            let turn = FencedTurn { instance, shard, epoch, before, turn, move_to, mailed };
            let outcome = self.engine.committer.commit(Box::new(Decided { turn, announcement })).await;
            self.check(outcome).await?;
            span.committed();
            let mut late = self.engine.dispatcher.outstanding.remove(&outcomes);
            late.extend(self.confirm());
            self.engine.dispatcher.stop_activities(late).await;
            if held {
                self.engine.broker.notify(move_to.unwrap_or(shard), ShardNotice::Nudge(self.instance.clone()));
            }
        }
        // Released before the effects: they may wait for the broker, and other turns must not wait with them.
        drop(room);
        // Not before the commit: a worker acks its item when it hears the verdict.
        for (id, verdict) in verdicts {
            if let Some(answer) = self.answers.remove(&id) {
                let _gone = answer.send(ReportReply::Settled(verdict));
            }
        }
        apply_effects(&self.engine.dispatcher, effects, terms).await;
        if reload {
            self.warm = None;
            self.backlog.clear();
            self.engine.warm.deliver(&self.instance, Inbound::Nudge);
            return Ok(After::Leave);
        }
        self.after(move_to)
    }

    fn after(&mut self, move_to: Option<ShardId>) -> Result<After, Obstacle> {
        let Some(hydrated) = &self.warm else { return Ok(After::Leave) };
        if let Some(shard) = move_to {
            self.engine.due_queue.set(&self.instance, None);
            // Its new owner offers what is outstanding, and this node will not hear of the outcomes.
            self.engine.dispatcher.outstanding.hand_over(&self.instance);
            return Err(Obstacle::Elsewhere(shard));
        }
        let state = hydrated.instance.state();
        self.engine.due_queue.set(&self.instance, if self.again { None } else { state.wake_at });
        if state.status == InstanceStatus::Running { Ok(After::Stay) } else { Ok(After::Leave) }
    }

    pub(crate) fn again(&self, error: &outlast_storage::Error) -> Obstacle {
        Counters::count(&self.engine.counters.reads_failed);
        match error {
            outlast_storage::Error::Corrupt { .. } => {
                self.engine.problems.note_damaged(&self.instance, error.to_string(), self.engine.store.now());
                tracing::error!(target: RUNTIME, instance = %self.instance, %error, "the instance cannot be read until its data is repaired");
            }
            other => {
                tracing::warn!(target: RUNTIME, instance = %self.instance, error = %other, "the store could not be read")
            }
        }
        self.note_failure(&error.to_string());
        self.again_later();
        Obstacle::Again
    }

    /// A failure becomes a problem only if it lasts.
    pub(crate) fn note_failure(&self, how: &str) {
        self.engine.problems.troubles.turns.note(self.instance.clone(), how.to_owned());
    }

    /// Nudges the instance later: the store has everything that the lost turn was about.
    pub(crate) fn again_later(&self) {
        let (engine, instance) = (Arc::clone(&self.engine), self.instance.clone());
        let delay = self.retry_delay();
        self.engine.surroundings.spawn(async move {
            tokio::time::sleep(delay).await;
            engine.warm.deliver(&instance, Inbound::Nudge);
        });
    }

    fn retry_delay(&self) -> Duration {
        RETRY_DELAY.saturating_mul(1 << self.failures.min(5)).min(RETRY_DELAY_MAX)
    }

    async fn back_off(&mut self) {
        self.failures += 1;
        tokio::time::sleep(self.retry_delay()).await;
    }
}

fn take_messages(backlog: &mut VecDeque<Incoming>, limits: &Limits) -> Vec<Incoming> {
    let mut bytes = 0;
    let fits = |incoming: &&Incoming| {
        let before = bytes;
        bytes += incoming.message.payload_bytes();
        before < TURN_MESSAGE_BYTES_MAX
    };
    let count = backlog.iter().take(limits.messages_per_turn_max).take_while(fits).count();
    backlog.drain(..count).collect()
}
