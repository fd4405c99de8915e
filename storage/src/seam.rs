//! The seams that the engine writes through.
//!
//! Numbered guarantees, shown by the conformance suite for every store:
//! 1. `commit` is atomic per turn and durable when it returns; several turns share one durable write.
//! 2. A turn whose epoch is not the shard's current one is not written (`Fenced`); one whose `expected` does not match
//!    the row is not written (`Conflict`). One turn's failure leaves its neighbours in the group committed.
//! 3. An event, once committed, never changes. Ids are 1..n without gap.
//! 4. A call that returned `Ok` is durable.
//! 5. A message id is applied at most once per instance: `send` and `start` with an id that waits in the inbox or that a
//!    history event records are accepted and do nothing.
//! 6. Inbox sequence numbers rise in commit order per sender; rows leave the inbox only by a turn that consumed them. Reading
//!    on from a cursor never misses a row, in whichever order transactions commit; it may give rows that were read before.
//! 7. The store's clock is the only clock in its answers.
//!
//! What was read may be stale by the time it is used: rows become visible late, commits overlap a look, or a deletion and
//! the next life of the id come in between. Each reading method says why that does no harm.

use std::time::Duration;

use async_trait::async_trait;
use outlast_core::{
    ActivityKey, Epoch, Fork, HistoryEvent, InboxSeq, Incoming, InstanceId, InstanceState, Message, MessageKind,
    Millis, NodeId, ShardId, StartSnapshot, TagFilter, Turn, WorkerId, encode,
};
use sha2::{Digest as _, Sha256};

use crate::{Error, InspectStore};

/// A complete store.
pub trait Store: TurnStore + LeaseStore + CallStore + InspectStore {}

impl<T: TurnStore + LeaseStore + CallStore + InspectStore> Store for T {}

/// A turn and the right by which it is committed.
#[derive(Clone, Debug)]
pub struct FencedTurn {
    /// Whose turn.
    pub instance: InstanceId,
    /// The shard by whose lease it is committed.
    pub shard: ShardId,
    /// The epoch of that lease.
    pub epoch: Epoch,
    /// The row as it was read or last committed, so that a store writes only what has changed.
    pub before: InstanceState,
    /// What to write: everything but effects, logs and verdicts.
    pub turn: Turn,
    /// Moves the instance and its inbox to this shard.
    pub move_to: Option<ShardId>,
    /// The applied message that came with a broker notice instead of from its row. If the row says otherwise, that is a conflict.
    pub mailed: Option<Mailed>,
}

/// Identifies a message that did not come from its inbox row, so that whoever can send notices cannot decide history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mailed {
    /// Its row.
    pub seq: InboxSeq,
    /// SHA-256 of its stored form.
    pub digest: [u8; 32],
}

impl Mailed {
    /// What the row of this message must hold.
    pub fn new(seq: InboxSeq, message: &Message) -> Self {
        Self { seq, digest: Sha256::digest(encode(message)).into() }
    }

    /// Whether this is the message's stored form.
    pub(crate) fn is(&self, data: &[u8]) -> bool {
        self.digest == <[u8; 32]>::from(Sha256::digest(data))
    }
}

/// What became of one turn of a group.
#[derive(Clone, Debug)]
pub enum TurnOutcome {
    /// It is durable. These instances have new rows in their inbox.
    Committed {
        /// Whom to wake up.
        wakes: Vec<Wake>,
    },
    /// The stored instance is not as expected; nothing was written.
    Conflict,
    /// The shard has another epoch; nothing was written.
    Fenced,
    /// The store refused this turn for good (a constraint); nothing was written.
    Refused(String),
}

/// An instance with something new in its inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wake {
    /// Where it lives.
    pub shard: ShardId,
    /// The instance.
    pub instance: InstanceId,
}

/// Answer to a group commit.
#[derive(Clone, Debug)]
pub struct CommitReply {
    /// The store's time.
    pub now: Millis,
    /// One outcome per turn, in order.
    pub outcomes: Vec<TurnOutcome>,
}

/// All that an actor is hydrated from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The shard that the instance belongs to.
    pub shard: ShardId,
    /// Its row.
    pub state: InstanceState,
    /// History of the current execution, in order.
    pub history: Vec<HistoryEvent>,
    /// Its inbox, in order.
    pub inbox: Vec<Incoming>,
    /// From where the inbox is to be read on.
    pub cursor: InboxCursor,
    /// The message of `inbox` that was not read from its row.
    pub mailed: Option<Mailed>,
}

impl Loaded {
    /// What `load` gives for this instance as long as nothing else has happened to it.
    pub fn begun(shard: ShardId, beginning: StartSnapshot) -> Option<Self> {
        let MessageKind::Start(start) = &beginning.message.kind else { return None };
        let state = InstanceState::begun(&start.name);
        let mailed = Some(Mailed::new(beginning.seq, &beginning.message));
        let inbox = vec![Incoming { seq: Some(beginning.seq), message: beginning.message }];
        Some(Self { shard, state, history: Vec::new(), inbox, cursor: InboxCursor::default(), mailed })
    }
}

/// From where an inbox is read on; only the store that made it knows what it means. The default is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InboxCursor {
    /// Rows of transactions before this one have been seen; 0 where rows become visible in the order of their numbers.
    pub transaction: u64,
    /// Rows up to this one have been seen.
    pub seq: InboxSeq,
    /// Inside of a look of several pages: the oldest transaction that may have been under way at its first page, and so may
    /// have become visible behind the pages that were read since; 0 at the beginning of a look.
    pub horizon: u64,
}

/// An instance that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// When.
    pub at: Millis,
    /// Its shard.
    pub shard: ShardId,
    /// The instance.
    pub instance: InstanceId,
}

/// Instances with rows in their inbox.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    /// The receivers; one may be named more than once.
    pub receivers: Vec<Wake>,
    /// From where to look on.
    pub next: InboxCursor,
    /// Whether the limit cut this look short.
    pub more: bool,
}

/// What running instances needs.
#[async_trait]
pub trait TurnStore: Send + Sync + 'static {
    /// Writes the turns of many instances in one durable transaction.
    async fn commit(&self, group: Vec<FencedTurn>) -> Result<CommitReply, Error>;

    /// Reads an instance with its current history and inbox; `None` when there is none. A turn based on a stale answer is
    /// refused: its execution and event, the rows it consumes or its epoch do not match the stored ones.
    async fn load(&self, instance: &InstanceId) -> Result<Option<Loaded>, Error>;

    /// Rows of one inbox after `after`, in order, and from where to read on. For rows that a stale answer lacks, a nudge comes or
    /// a look at `arrivals` finds them; a turn that consumes a row that is gone is refused.
    async fn inbox(&self, instance: &InstanceId, after: InboxCursor) -> Result<(Vec<Incoming>, InboxCursor), Error>;

    /// Running instances of these shards with `wake_at` up to `until`, soonest first, at most `limit`. An instance that has gone on
    /// since is woken too early, which only costs a look at it; a sooner time that a turn has noted since is kept.
    async fn due(&self, shards: &[ShardId], until: Millis, limit: usize) -> Result<Vec<Due>, Error>;

    /// The soonest `wake_at` later than `after` among running instances of these shards. Asked only where a virtual clock stands
    /// still until it is moved, and nothing runs.
    async fn next_due(&self, shards: &[ShardId], after: Millis) -> Result<Option<Millis>, Error>;

    /// Receivers in these shards with inbox rows after `after`, at most `limit` of them. One named needlessly reads its inbox and
    /// finds nothing new; a row that became visible behind a look is found by the next, which begins at the look's horizon.
    async fn arrivals(&self, shards: &[ShardId], after: InboxCursor, limit: usize) -> Result<Arrivals, Error>;

    /// Running instances of these shards with `pending > 0`, by id after `after`, at most `limit`. Who is named is loaded, and its
    /// history says what is outstanding; what is scheduled after the look is handed out by the turn that schedules it.
    async fn pending(&self, shards: &[ShardId], after: Option<&InstanceId>, limit: usize) -> Result<Vec<Wake>, Error>;

    /// Returns when another process may have written since `seen`, or after `timeout`. Pass the result as `seen` next time; it
    /// differs from `seen` if something may have been written.
    async fn written_elsewhere(&self, seen: u64, timeout: Duration) -> u64;

    /// The store's time, never going back.
    fn now(&self) -> Millis;

    /// Sleeps until the store's time is `at`. A virtual clock decides what that means.
    async fn sleep_until(&self, at: Millis);
}

/// A node as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its id, new at every start.
    pub id: NodeId,
    /// The (orchestration, version) pairs that it serves; empty takes no shard.
    pub handlers: Vec<(String, String)>,
    /// What its worker runs; `None` when it runs no activities.
    pub worker: Option<WorkerInfo>,
}

/// What a worker runs, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
    /// The tags that it takes.
    pub filter: TagFilter,
    /// The activities that it has registered.
    pub activities: Vec<String>,
}

/// Work that waits and that nobody serves, as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What is missing.
    pub reason: String,
    /// Who waits longest.
    pub instance: InstanceId,
    /// Its orchestration.
    pub orchestration: String,
    /// How many activities wait.
    pub waiting: u32,
    /// Since when the first of them waits.
    pub since: Millis,
}

/// A shard and the epoch by which a node holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldShard {
    /// The shard.
    pub shard: ShardId,
    /// The epoch.
    pub epoch: Epoch,
}

/// Who holds what, as of one renewal.
#[derive(Clone, Debug)]
pub struct LeaseView {
    /// How long the renewed lease lasts, counted from when the renewal was sent. `Duration::MAX` when it cannot end.
    pub lease: Duration,
    /// All live nodes, the asking one included, in the order of their ids.
    pub nodes: Vec<NodeInfo>,
    /// Every shard's holder; `None` is free.
    pub owners: Vec<Option<NodeId>>,
    /// What the asking node holds.
    pub held: Vec<HeldShard>,
    /// Set if the store went back to an older state since the last renewal; says how that shows. What a node remembers (cursors,
    /// instances) may never have existed. Reported once.
    pub set_back: Option<String>,
}

/// Who has a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionClaim {
    /// The asking worker.
    Mine,
    /// This worker.
    Other(WorkerId),
}

/// Who may run which shard.
#[async_trait]
pub trait LeaseStore: Send + Sync + 'static {
    /// Announces a node. Refused with `Unusable` when another process runs this store and cannot share it.
    async fn join(&self, node: NodeInfo) -> Result<(), Error>;

    /// Renews the node and returns who holds what. A late answer prolongs nothing, as the lease counts from when it was asked for; who
    /// acts on a shard that has another holder by now is fenced.
    async fn renew(&self, node: &NodeId) -> Result<LeaseView, Error>;

    /// Takes those of `shards` that are free, each with its epoch raised.
    async fn acquire(&self, node: &NodeId, shards: &[ShardId]) -> Result<Vec<HeldShard>, Error>;

    /// Frees shards.
    async fn release(&self, node: &NodeId, shards: &[ShardId]) -> Result<(), Error>;

    /// Frees all that the node holds and forgets it.
    async fn leave(&self, node: &NodeId) -> Result<(), Error>;

    /// Makes these the node's shortages, in place of those it reported before; they go with the node.
    async fn report_shortages(&self, node: &NodeId, shortages: Vec<Shortage>) -> Result<(), Error>;

    /// Takes the session for `worker` unless a live worker has it that used it less than `idle` ago; using it renews it.
    async fn claim_session(&self, session: &str, worker: &WorkerId, idle: Duration) -> Result<SessionClaim, Error>;

    /// The live workers that hold these sessions, in order. A worker that is brought an item of a session that it has lost passes
    /// it on to whoever holds that now.
    async fn session_owners(&self, sessions: &[String]) -> Result<Vec<Option<WorkerId>>, Error>;

    /// Frees the sessions of a worker that stops, or only the one that it no longer uses.
    async fn release_sessions(&self, worker: &WorkerId, only: Option<&str>) -> Result<(), Error>;

    /// How many shards there are; fixed when the store is created.
    fn shards(&self) -> u16;
}

/// What to do when an id to start exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartConflict {
    /// Leave it as it is.
    #[default]
    UseExisting,
    /// Report `InstanceExists`, also for the same orchestration.
    Fail,
    /// End what runs, whatever its orchestration, and start anew in the instance's next execution.
    TerminateExisting,
}

/// A start.
#[derive(Clone, Debug)]
pub struct StartRequest {
    /// The id.
    pub instance: InstanceId,
    /// A message of kind `Start`.
    pub message: Message,
    /// When the id exists. Unless it is to be terminated, another orchestration under the id is `InstanceExists`.
    pub on_conflict: StartConflict,
}

/// What a start did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOutcome {
    /// A new instance was made.
    Started,
    /// The instance was there, and was started with the same input, as far as that is still known.
    AlreadyExists,
    /// The instance was there, and was started with another input, which it keeps: the new one is not used.
    AlreadyExistsWithOtherInput,
    /// The instance was there; it is ended and begins anew.
    Replaced,
}

/// Answer to a start.
#[derive(Clone, Debug)]
pub struct StartReceipt {
    /// The shard of the instance.
    pub shard: ShardId,
    /// What happened.
    pub outcome: StartOutcome,
    /// Under which number the first message of a new instance waits.
    pub seq: Option<InboxSeq>,
}

/// Answer to a sent message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The shard that was told; `None` when the instance has ended or the message was known, so nothing was written.
    pub nudge: Option<ShardId>,
}

/// Which activity a heartbeat belongs to.
#[derive(Clone, Copy, Debug)]
pub struct HeartbeatOf<'a> {
    /// The attempt that sent it.
    pub key: &'a ActivityKey,
    /// When it was scheduled; no attempt of another life was scheduled then.
    pub scheduled_at: Millis,
    /// The name under which all attempts find the heartbeat.
    pub activity: &'a str,
}

/// How a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendOptions {
    /// An `Enqueue` is refused with `QueueFull` when so many wait in its queue.
    pub queue_messages_max: usize,
    /// When a call that is repeated was first made, by [`TurnStore::now`]. An instance that was begun since is not the one that it was
    /// for, and counts as not found: the first try may have reached a life of the id that is over.
    pub first_tried: Option<Millis>,
}

impl SendOptions {
    /// A call that is made for the first time.
    pub fn first_try(queue_messages_max: usize) -> Self {
        Self { queue_messages_max, first_tried: None }
    }
}

/// How an instance is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Not only when the instance and all its descendants have ended.
    pub force: bool,
    /// As [`SendOptions::first_tried`].
    pub first_tried: Option<Millis>,
}

impl DeleteOptions {
    /// A call that is made for the first time.
    pub fn first_try(force: bool) -> Self {
        Self { force, first_tried: None }
    }
}

/// What comes from outside. The store itself tells the owner of the shard ([`crate::Arrival`]), whether or not the caller still waits
/// for its answer: what a dropped call has made durable happens all the same, and at once.
#[async_trait]
pub trait CallStore: Send + Sync + 'static {
    /// Makes an instance (row and first inbox message) in one durable step.
    async fn start(&self, request: StartRequest) -> Result<StartReceipt, Error>;

    /// Puts a message into an instance's inbox.
    async fn send(&self, instance: &InstanceId, message: Message, options: SendOptions) -> Result<Receipt, Error>;

    /// Keeps what an activity said last, until a turn takes it away or the execution has ended. Does nothing when the activity
    /// has its outcome or belongs to another life of the id.
    async fn save_heartbeat(&self, of: HeartbeatOf<'_>, details: String) -> Result<(), Error>;

    /// The last heartbeat of an activity. A stale one is what it would be had its worker died sooner; none is from another life,
    /// because a life's heartbeats are deleted with it.
    async fn heartbeat(&self, instance: &InstanceId, activity: &str) -> Result<Option<String>, Error>;

    /// Makes an instance from a copied beginning; the id must be free.
    async fn import(&self, instance: &InstanceId, fork: Fork) -> Result<ShardId, Error>;

    /// Deletes a root instance with all its descendants.
    async fn delete(&self, instance: &InstanceId, options: DeleteOptions)
    -> Result<crate::DeleteInstanceResult, Error>;

    /// Deletes ended root instances, with their descendants, that match `filter`.
    async fn delete_bulk(&self, filter: crate::InstanceFilter) -> Result<crate::DeleteInstanceResult, Error>;

    /// Deletes histories of executions before the current one.
    async fn prune(&self, instance: &InstanceId, options: crate::PruneOptions) -> Result<crate::PruneResult, Error>;

    /// `prune` for every instance that matches `filter`.
    async fn prune_bulk(
        &self,
        filter: crate::InstanceFilter,
        options: crate::PruneOptions,
    ) -> Result<crate::PruneResult, Error>;
}
