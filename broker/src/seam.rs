//! The seam between the engine and whatever carries its messages.
//!
//! Numbered guarantees, shown by the conformance suite for every broker, while it loses nothing:
//! 1. Published work is delivered until it is acked: again when its delivery is dropped or requeued, when its source is
//!    closed or dropped, and when its worker falls silent.
//! 2. An item is held by one worker at a time, whose filter takes its tag. A worker gets no more than it asks for; what
//!    it has no room for goes to others.
//! 3. Publishing an item that is queued or held, under the same key and token, does nothing. Only the worker that holds its
//!    session by now may be given a second copy: the first may wait where workers without room for more sessions take none.
//! 4. Items of a session go to the worker that `Dispatch` names, which holds it. Without one they go to anybody who admits
//!    sessions: whoever is given them claims the session in the store, and passes them on when another has it.
//! 5. A cancellation reaches the workers that run its activity under its token, and its item, if still queued, is not
//!    delivered. It touches no other life of the instance.
//! 6. Notices and requests from one sender to one shard arrive in order, at its latest owner.
//! 7. A request is answered by the owner, or not at all when there is none or it does not answer.
//! 8. A watch that has taken hold sees every update, or a later one. It takes hold in a moment, and may miss what
//!    comes before or while the broker is away: waiting clients look into the store too.
//! 9. `BrokerState::losses` rises when work may be lost; after that everything works again, without being set up anew.
//!
//! A broker may lose everything at any time; whoever uses it must be able to find all facts in the store.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use outlast_core::{
    ActivityItem, ActivityKey, ActivityOutcome, ActivityRef, AttemptInfo, ExecutionId, InstanceId, InstanceState,
    MessageId, OrchestrationStatus, Reason, RefusedOption, ShardId, StartSnapshot, TagFilter, Token, Verdict, WorkerId,
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// Failures of a broker.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// Not reachable now; everything can be sent again later.
    #[error("broker is unavailable: {0}")]
    Unavailable(#[source] Reason),
    /// Not of use as it is: too old, or set up in another way than asked for. Waiting does not mend it.
    #[error("broker cannot be used: {0}")]
    Unusable(#[source] Reason),
}

impl Error {
    /// Not reachable now.
    pub fn unavailable(why: impl Into<Reason>) -> Self {
        Self::Unavailable(why.into())
    }

    /// Not of use as it is.
    pub fn unusable(why: impl Into<Reason>) -> Self {
        Self::Unusable(why.into())
    }
}

impl From<RefusedOption> for Error {
    fn from(refused: RefusedOption) -> Self {
        Self::Unusable(Reason::of(refused))
    }
}

/// The result of an attempt on its way to the owner of the instance.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which activity.
    pub key: ActivityKey,
    /// The token of the item.
    pub token: Token,
    /// What the attempt came to.
    pub result: ReportResult,
}

/// What an attempt came to.
#[derive(Clone, Debug)]
pub enum ReportResult {
    /// User code ended.
    Done {
        /// How.
        outcome: ActivityOutcome,
        /// Who ran it.
        run: AttemptInfo,
    },
    /// The worker has no handler of this name.
    Unregistered {
        /// The name.
        activity: String,
    },
}

/// The owner's answer to a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportReply {
    /// Settled for good; the item can be acked.
    Settled(Verdict),
    /// The instance lives in this shard now: ask its owner.
    Moved(ShardId),
    /// Not by me or not now: ask again.
    TryAgain,
}

/// A worker asks whether an activity is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Which.
    pub activity: ActivityRef,
    /// Its code runs already.
    pub begun: bool,
}

/// What a shard's owner is told. The loss of a notice costs time only.
#[derive(Clone, Debug)]
pub enum ShardNotice {
    /// The inbox of this instance has something new.
    Nudge(InstanceId),
    /// This instance is new; here is all that its first turn needs.
    Started(Box<StartSnapshot>),
    /// This instance was deleted.
    Deleted(InstanceId),
}

/// What a shard's owner is asked.
#[derive(Clone, Debug)]
pub enum ShardRequest {
    /// A worker reports.
    Report(Box<Report>),
    /// A worker asks whether activities are wanted. `Settled(Applied)` means yes, `Settled` with any other verdict no.
    Wanted(Vec<Question>),
}

/// What a shard's owner receives.
#[derive(Debug)]
pub enum ShardMessage {
    /// Somebody tells.
    Notice(ShardNotice),
    /// A worker asks; the answers are in the order of its questions.
    Ask(Vec<Question>, oneshot::Sender<Vec<ReportReply>>),
    /// A worker reports.
    Report(Box<Report>, oneshot::Sender<ReportReply>),
}

/// What is taken out of the queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// An activity that is not wanted any more, and is not published again: if it is queued it is removed, and whoever runs it is
    /// told. A worker that does not hear of it asks.
    Activity(ActivityRef),
    /// All that was brought to this worker alone, as it is dead: owners hand it out again.
    Worker(WorkerId),
}

/// What a worker is told while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// This activity is no longer wanted.
    Cancel(ActivityRef),
    /// Some life of this activity is no longer wanted, says an owner of an older version: ask about those that run.
    Check(ActivityKey),
}

/// What a worker takes.
#[derive(Clone, Debug)]
pub struct WorkerProfile {
    /// Its id, new at every start.
    pub id: WorkerId,
    /// Which tags.
    pub filter: TagFilter,
    /// How many sessions it may hold at once.
    pub sessions_max: usize,
}

/// How a worker is done with a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Its completion is committed, or it is not wanted.
    Ack,
    /// Give it to somebody (perhaps this worker again), at once.
    Requeue,
    /// Nobody could say whether it is wanted: give it to somebody after this time, meanwhile others come.
    Later(Duration),
    /// Another worker holds its session: bring it there.
    Forward(WorkerId),
    /// This worker has no room for its session, which nobody holds: give it to whoever has.
    Unclaimed,
}

/// An activity and, when its session is held, by whom.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// The work.
    pub item: ActivityItem,
    /// The worker that holds its session.
    pub worker: Option<WorkerId>,
    /// It was handed out before, and may have been run since: whoever is given it asks its owner first.
    pub again: bool,
}

/// An activity handed to a worker. Dropped without `settle`, it is delivered again.
pub struct Delivery {
    /// The work, shared with a broker that keeps it until it is settled.
    pub item: Arc<ActivityItem>,
    /// Milliseconds that it waited in the broker.
    pub queued_ms: u64,
    /// Whether it was handed out before, so that somebody may have run it.
    pub redelivered: bool,
    /// Takes the worker's decision.
    pub settle: Box<dyn FnOnce(Settle) + Send + Sync>,
}

/// Where a worker gets its work.
#[async_trait]
pub trait WorkSource: Send {
    /// The next items that this worker may run, at most `room` (at least 1); waits for one. `None` when the source is
    /// closed. The wait may be given up: what was fetched is not lost with it.
    async fn next(&mut self, room: usize) -> Option<Vec<Delivery>>;

    /// Whether something waits that this worker would be given if it had room, as far as is known. Asked by a worker that is
    /// full, now and then.
    async fn has_waiting(&mut self) -> bool {
        false
    }

    /// Whether the worker has room for sessions that nobody holds. Until told otherwise it has.
    fn admit_sessions(&mut self, admit: bool);

    /// The worker uses this session from now on: it takes items of it even when it admits no new sessions.
    fn hold_session(&mut self, _session: &str) {}

    /// The worker no longer uses this session.
    fn release_session(&mut self, session: &str);

    /// Whether, as far as is known here, items of this session wait that only this worker is given.
    fn waits_for(&self, _session: &str) -> bool {
        false
    }

    /// Takes no more: what was fetched and not handed out goes to others at once. `next` is not called after it.
    async fn close(&mut self) {}

    /// After `close`: what was handed out and not settled goes to others too. Returns when the broker knows of everything
    /// that was settled, or does not answer.
    async fn finish(&mut self) {}
}

/// What was said last about an instance.
#[derive(Clone, Debug, Default)]
pub struct StatusUpdate {
    /// Rises with every update.
    pub version: u64,
    /// The status that was committed just before; `None` when it has to be read.
    pub status: Option<OrchestrationStatus>,
    /// The execution that the status is of: an update may be late, and the id may have begun anew.
    pub execution: ExecutionId,
    /// The start that began that execution, where it was told: the executions of a deleted instance and of its successor have the
    /// same numbers.
    pub begun_by: Option<MessageId>,
}

/// Something that keeps a broker from its work.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// What it is, and what to do.
    pub reason: String,
    /// Since when.
    pub since: Instant,
}

/// Pushed changes of one instance. Their loss costs time only.
pub type StatusWatch = watch::Receiver<StatusUpdate>;

/// How a broker is at this moment, as far as is known.
#[derive(Clone, Debug)]
pub struct BrokerState {
    /// Whether workers of other processes are reached through it. Then owners offer what is outstanding again, since what it
    /// carries may be lost. Otherwise the broker lives as long as all its workers and loses nothing.
    pub is_shared: bool,
    /// Whether it is reached.
    pub is_connected: bool,
    /// Largest input in bytes that travels with an item; a larger one is read from the history by the worker, and results
    /// above it go through the inbox.
    pub payload_bytes_max: usize,
    /// Rises whenever work may have been lost, so that owners hand out again what has no outcome.
    pub losses: watch::Receiver<u64>,
    /// What keeps it from its work, for clients to list.
    pub troubles: Vec<Trouble>,
}

/// Carries work, notices, reports, cancellations and status updates.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Hands activities to workers. One that is queued or runs, under the same key and token, is not queued again.
    async fn publish(&self, items: Vec<Dispatch>) -> Result<(), Error>;

    /// Takes something out of the queues.
    async fn withdraw(&self, what: Withdrawal) -> Result<(), Error>;

    /// Opens a worker's source of items and its control messages.
    async fn pull(
        &self,
        worker: WorkerProfile,
    ) -> Result<(Box<dyn WorkSource>, mpsc::UnboundedReceiver<Control>), Error>;

    /// Becomes the receiver of messages for these shards, in place of whoever was. An error says that the broker is away: it takes
    /// hold by itself when the broker is back.
    async fn own(&self, shards: &[ShardId], receiver: mpsc::UnboundedSender<ShardMessage>) -> Result<(), Error>;

    /// Stops receiving messages for these shards, if `receiver` still does.
    async fn disown(&self, shards: &[ShardId], receiver: &mpsc::UnboundedSender<ShardMessage>);

    /// Tells the owner of a shard something.
    fn notify(&self, shard: ShardId, notice: ShardNotice);

    /// Brings a request to the owner of a shard; gives one answer to a report and one to each question, or none when nobody
    /// answers.
    async fn request(&self, shard: ShardId, request: ShardRequest) -> Vec<ReportReply>;

    /// Tells waiting clients that an instance changed. `state` is what it changed to, when the caller has just committed it, and
    /// `begun_by` the start that began its execution, if the caller knows it: whoever made that start need not ask the store whether
    /// the update is of an earlier life of the id.
    fn publish_status(&self, instance: &InstanceId, state: Option<&InstanceState>, begun_by: Option<&MessageId>);

    /// Subscribes to the status of an instance. Subscribe first, then read.
    fn watch(&self, instance: &InstanceId) -> StatusWatch;

    /// How it is.
    fn state(&self) -> BrokerState;
}
