//! Whether an activity is wanted: workers ask before they begin an item that is not fresh, and every few seconds about
//! long-running ones; owners answer (`shards::questions`). So a cancellation that was lost, or never sent because its owner died,
//! costs a few seconds.
//!
//! Questions to one owner that arise while a request to it is under way share the next request, so requests are bounded by round
//! trips and not by activities.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use outlast_broker::{Question, ReportReply, ShardRequest};
use outlast_core::{ActivityRef, NodeId, ShardId, Verdict};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::telemetry::logging::RUNTIME;
use crate::worker::Worker;

/// Most questions in one request: some fifty kilobytes, below any limit of a server.
const QUESTIONS_MAX: usize = 500;
/// How long an answer may take: a look into the store, and a commit before it.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// How long an owner that did not answer counts as silent before it is asked again: items give up their slots at once meanwhile.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// How long silence is remembered: a dead owner is replaced far sooner, and then nobody asks it.
const SILENT_KEPT: Duration = Duration::from_secs(60);
/// How often a worker asks about running activities. With the answer it is well below the ten seconds within which an unwanted
/// activity is told.
const ASK_EVERY: Duration = Duration::from_secs(3);
/// Younger activities are not asked about: most end before, and cost their owner no question.
const LONG: Duration = Duration::from_secs(2);
/// How many times a question follows an instance to another shard. One that moves more often is asked about again soon.
const MOVES_MAX: usize = 3;

/// Whom a question goes to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    /// The node that holds the shard, as far as is known.
    Node(NodeId),
    /// Any node that holds it.
    Shard(ShardId),
}

/// A question, where it goes, and where its answer goes.
struct Waiting {
    question: Question,
    shard: ShardId,
    answer: oneshot::Sender<Option<ReportReply>>,
}

/// What is known about an activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Yes,
    No,
    /// Its owner cannot say now.
    Unsure,
    /// Its owner does not answer.
    Silence,
}

/// The questions of a worker.
#[derive(Default)]
pub(crate) struct Inquiries {
    owners: Mutex<Owners>,
}

#[derive(Default)]
struct Owners {
    /// Questions to send, by owner. An owner is in here as long as a task sends questions to it.
    waiting: BTreeMap<Owner, Vec<Waiting>>,
    /// Owners that did not answer, and when they last failed to.
    silent: BTreeMap<Owner, Instant>,
}

impl Owners {
    /// Whether an owner counts as silent without being asked again: one item after another would hold a slot, waiting for it.
    fn is_silent(&self, owner: &Owner) -> bool {
        let asked = self.silent.get(owner);
        asked.is_some_and(|asked| asked.elapsed() < SILENT_FOR || self.waiting.contains_key(owner))
    }
}

impl Inquiries {
    /// Adds a question. `Some(true)`: no task sends to this owner, so the caller must start one; `None`: the owner is silent.
    fn add(&self, owner: &Owner, waiting: Waiting) -> Option<bool> {
        let mut owners = self.lock();
        if owners.is_silent(owner) {
            return None;
        }
        let idle = !owners.waiting.contains_key(owner);
        owners.waiting.entry(owner.clone()).or_default().push(waiting);
        Some(idle)
    }

    /// Takes the next questions to send; after none, the sender ends.
    fn take(&self, owner: &Owner) -> Vec<Waiting> {
        let mut owners = self.lock();
        let Some(waiting) = owners.waiting.get_mut(owner) else { return Vec::new() };
        let count = waiting.len().min(QUESTIONS_MAX);
        let taken: Vec<Waiting> = waiting.drain(..count).collect();
        if taken.is_empty() {
            // Under the lock that `add` takes: a question is either taken above or finds no task and starts one.
            owners.waiting.remove(owner);
        }
        taken
    }

    fn note(&self, owner: &Owner, has_answered: bool) {
        let mut owners = self.lock();
        if has_answered {
            owners.silent.remove(owner);
        } else {
            // Forgets owners that are no longer asked.
            owners.silent.retain(|_, asked| asked.elapsed() < SILENT_KEPT);
            owners.silent.insert(owner.clone(), Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Whether the activity is wanted.
    pub(crate) async fn is_wanted(self: &Arc<Self>, question: Question) -> Wanted {
        let mut shard = ShardId::of(&question.activity.key.instance, self.shards);
        let mut owner = self.owner(shard);
        for _ in 0..MOVES_MAX {
            match self.ask(owner, shard, question.clone()).await {
                Some(ReportReply::Settled(Verdict::Applied)) => return Wanted::Yes,
                Some(ReportReply::Settled(Verdict::AlreadyDone | Verdict::Unknown)) => return Wanted::No,
                Some(ReportReply::Moved(to)) => (owner, shard) = (Owner::Shard(to), to),
                Some(ReportReply::TryAgain) => return Wanted::Unsure,
                None => return Wanted::Silence,
            }
        }
        Wanted::Unsure
    }

    fn owner(&self, shard: ShardId) -> Owner {
        self.neighbours.holder(shard).map_or(Owner::Shard(shard), Owner::Node)
    }

    async fn ask(self: &Arc<Self>, owner: Owner, shard: ShardId, question: Question) -> Option<ReportReply> {
        let (answer, answered) = oneshot::channel();
        match self.inquiries.add(&owner, Waiting { question, shard, answer }) {
            Some(true) => drop(self.surroundings.spawn(Arc::clone(self).send_questions(owner))),
            Some(false) => {}
            None => return None,
        }
        answered.await.ok().flatten()
    }

    /// Sends the questions to an owner until none is left.
    async fn send_questions(self: Arc<Self>, owner: Owner) {
        loop {
            let taken = self.inquiries.take(&owner);
            let Some(first) = taken.first() else { return };
            let (shard, questions) = (first.shard, taken.iter().map(|waiting| waiting.question.clone()).collect());
            let replies =
                tokio::time::timeout(ANSWER_MAX, self.broker.request(shard, ShardRequest::Wanted(questions))).await;
            let replies = replies.unwrap_or_default();
            self.inquiries.note(&owner, !replies.is_empty());
            let mut replies = replies.into_iter();
            for waiting in taken {
                // Whoever asked may have given up.
                let _gone = waiting.answer.send(replies.next());
            }
        }
    }

    /// Asks about all long-running activities, until the worker stops.
    pub(crate) async fn ask_about_running(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.stopped.cancelled() => return,
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
            self.check(self.running_for(LONG)).await;
        }
    }

    /// Cancels activities that are not wanted.
    pub(crate) async fn check(self: &Arc<Self>, activities: Vec<ActivityRef>) {
        let asked = activities.into_iter().map(async |activity| {
            let question = Question { activity: activity.clone(), begun: true };
            if self.is_wanted(question).await == Wanted::No && self.cancel(&activity) {
                tracing::info!(target: RUNTIME, instance = %activity.key.instance, worker = %self.id, "a running activity is not wanted any more");
            }
        });
        join_all(asked).await;
    }
}
