//! A provider that panics, refuses, does not answer or loses its answer where a test says so: in a call of its store or its
//! broker. All other calls go through.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use outlast::providers::Provider;
use outlast_broker::{
    Broker, BrokerState, Control, Dispatch, ReportReply, ShardMessage, ShardNotice, ShardRequest, StatusWatch,
    Withdrawal, WorkSource, WorkerProfile,
};
use outlast_core::{
    EventId, ExecutionId, Fork, HistoryEvent, Incoming, InstanceId, InstanceState, KvEntry, Message, MessageId, Millis,
    NodeId, ShardId, WorkerId,
};
use outlast_storage::{
    Arrivals, CallStore, CommitReply, DeleteInstanceResult, DeleteOptions, Due, Error, ExecutionInfo, FencedTurn,
    HeartbeatOf, HeldShard, InboxCursor, InspectStore, InstanceFilter, InstanceInfo, InstanceTree, LeaseStore,
    LeaseView, ListedStatus, Loaded, NodeInfo, ProblemRow, PruneOptions, PruneResult, QueueDepths, Receipt,
    SendOptions, SessionClaim, Shortage, StartReceipt, StartRequest, Store, SystemMetrics, SystemStats, TurnStore,
    Wake,
};
use tokio::sync::mpsc;

/// Which calls do not do what they should.
#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Mutex<HashMap<&'static str, Fault>>>);

enum Fault {
    /// So many of the next ones panic.
    Panics(usize),
    Refuses,
    /// So many have come and wait.
    Hangs(usize),
    /// So many of the next ones are carried out, and then said to have failed.
    LosesAnswers(usize),
}

impl Faults {
    /// The next `times` calls of this name panic.
    pub(crate) fn arm(&self, call: &'static str, times: usize) {
        self.0.lock().unwrap().insert(call, Fault::Panics(times));
    }

    /// Calls of this name are refused until it is healed. Only of those that the lists below give a refusal for.
    pub(crate) fn refuse(&self, call: &'static str) {
        self.0.lock().unwrap().insert(call, Fault::Refuses);
    }

    /// Calls of this name have no answer until it is healed.
    pub(crate) fn hang(&self, call: &'static str) {
        self.0.lock().unwrap().insert(call, Fault::Hangs(0));
    }

    /// The next `times` calls of this name are carried out, and the caller is told that the store is away. Only of those that the
    /// lists below say that their answers can be lost.
    pub(crate) fn lose_answers(&self, call: &'static str, times: usize) {
        self.0.lock().unwrap().insert(call, Fault::LosesAnswers(times));
    }

    /// Calls of this name do what they should again.
    pub(crate) fn heal(&self, call: &'static str) {
        self.0.lock().unwrap().remove(call);
    }

    /// How many panics or lost answers are still to come.
    pub(crate) fn left(&self, call: &str) -> usize {
        let faults = self.0.lock().unwrap();
        if let Some(Fault::Panics(left) | Fault::LosesAnswers(left)) = faults.get(call) { *left } else { 0 }
    }

    fn hit(&self, call: &str) {
        let is_met = {
            let mut faults = self.0.lock().unwrap();
            let left = if let Some(Fault::Panics(left)) = faults.get_mut(call) { left } else { &mut 0 };
            let is_met = *left > 0;
            *left = left.saturating_sub(1);
            is_met
        };
        assert!(!is_met, "a fault of a test in {call}");
    }

    fn refuses(&self, call: &str) -> bool {
        matches!(self.0.lock().unwrap().get(call), Some(Fault::Refuses))
    }

    fn loses_answer(&self, call: &str) -> bool {
        match self.0.lock().unwrap().get_mut(call) {
            Some(Fault::LosesAnswers(left)) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }

    async fn hangs(&self, call: &str) {
        if let Some(Fault::Hangs(waiting)) = self.0.lock().unwrap().get_mut(call) {
            *waiting += 1;
        }
        while matches!(self.0.lock().unwrap().get(call), Some(Fault::Hangs(_))) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How many calls wait for this name to be healed.
    pub(crate) fn waiting(&self, call: &str) -> usize {
        if let Some(Fault::Hangs(waiting)) = self.0.lock().unwrap().get(call) { *waiting } else { 0 }
    }
}

/// Another provider, with faults.
pub(crate) struct Faulty {
    store: Arc<FaultyStore>,
    broker: Arc<FaultyBroker>,
}

struct FaultyStore {
    inner: Arc<dyn Store>,
    faults: Faults,
}

struct FaultyBroker {
    inner: Arc<dyn Broker>,
    faults: Faults,
}

impl Faulty {
    pub(crate) fn new(provider: &Arc<dyn Provider>, faults: &Faults) -> Arc<Self> {
        let (store, broker) = (provider.store(), provider.broker());
        Arc::new(Self {
            store: Arc::new(FaultyStore { inner: store, faults: faults.clone() }),
            broker: Arc::new(FaultyBroker { inner: broker, faults: faults.clone() }),
        })
    }
}

#[async_trait]
impl Provider for Faulty {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn broker(&self) -> Arc<dyn Broker> {
        self.broker.clone()
    }
}

/// Methods that panic, refuse, hang or lose their answers when they are told to, and are passed on otherwise.
macro_rules! pass_on {
    ($seam:ident for $faulty:ident {
        $(or $refusal:expr; async fn $refused:ident($($refused_arg:ident: $refused_type:ty),*) -> $refused_reply:ty;)*
        $(lossy async fn $lossy:ident($($lossy_arg:ident: $lossy_type:ty),*) -> $lossy_reply:ty;)*
        $(async fn $call:ident($($arg:ident: $type:ty),*) -> $reply:ty;)*
        $(fn $sync:ident($($sync_arg:ident: $sync_type:ty),*) -> $sync_reply:ty;)*
    }) => {
        #[async_trait]
        impl $seam for $faulty {
            $(async fn $refused(&self, $($refused_arg: $refused_type),*) -> $refused_reply {
                self.faults.hit(stringify!($refused));
                self.faults.hangs(stringify!($refused)).await;
                if self.faults.refuses(stringify!($refused)) {
                    return $refusal;
                }
                self.inner.$refused($($refused_arg),*).await
            })*
            $(async fn $lossy(&self, $($lossy_arg: $lossy_type),*) -> $lossy_reply {
                self.faults.hit(stringify!($lossy));
                let answer = self.inner.$lossy($($lossy_arg),*).await;
                if self.faults.loses_answer(stringify!($lossy)) {
                    return Err(Error::unavailable("a test has lost the answer"));
                }
                answer
            })*
            $(async fn $call(&self, $($arg: $type),*) -> $reply {
                self.faults.hit(stringify!($call));
                self.faults.hangs(stringify!($call)).await;
                self.inner.$call($($arg),*).await
            })*
            $(fn $sync(&self, $($sync_arg: $sync_type),*) -> $sync_reply {
                self.faults.hit(stringify!($sync));
                self.inner.$sync($($sync_arg),*)
            })*
        }
    };
}

pass_on! { TurnStore for FaultyStore {
    or Err(Error::unavailable("a fault of a test")); async fn commit(group: Vec<FencedTurn>) -> Result<CommitReply, Error>;
    async fn load(instance: &InstanceId) -> Result<Option<Loaded>, Error>;
    async fn inbox(instance: &InstanceId, after: InboxCursor) -> Result<(Vec<Incoming>, InboxCursor), Error>;
    async fn due(shards: &[ShardId], until: Millis, limit: usize) -> Result<Vec<Due>, Error>;
    async fn next_due(shards: &[ShardId], after: Millis) -> Result<Option<Millis>, Error>;
    async fn arrivals(shards: &[ShardId], after: InboxCursor, limit: usize) -> Result<Arrivals, Error>;
    async fn pending(shards: &[ShardId], after: Option<&InstanceId>, limit: usize) -> Result<Vec<Wake>, Error>;
    async fn written_elsewhere(seen: u64, timeout: Duration) -> u64;
    async fn sleep_until(at: Millis) -> ();
    fn now() -> Millis;
} }

pass_on! { LeaseStore for FaultyStore {
    async fn join(node: NodeInfo) -> Result<(), Error>;
    async fn renew(node: &NodeId) -> Result<LeaseView, Error>;
    async fn acquire(node: &NodeId, shards: &[ShardId]) -> Result<Vec<HeldShard>, Error>;
    async fn release(node: &NodeId, shards: &[ShardId]) -> Result<(), Error>;
    async fn leave(node: &NodeId) -> Result<(), Error>;
    async fn report_shortages(node: &NodeId, shortages: Vec<Shortage>) -> Result<(), Error>;
    async fn claim_session(session: &str, worker: &WorkerId, idle: Duration) -> Result<SessionClaim, Error>;
    async fn session_owners(sessions: &[String]) -> Result<Vec<Option<WorkerId>>, Error>;
    async fn release_sessions(worker: &WorkerId, only: Option<&str>) -> Result<(), Error>;
    fn shards() -> u16;
} }

pass_on! { CallStore for FaultyStore {
    lossy async fn import(instance: &InstanceId, fork: Fork) -> Result<ShardId, Error>;
    lossy async fn delete(instance: &InstanceId, options: DeleteOptions) -> Result<DeleteInstanceResult, Error>;
    lossy async fn send(instance: &InstanceId, message: Message, options: SendOptions) -> Result<Receipt, Error>;
    async fn start(request: StartRequest) -> Result<StartReceipt, Error>;
    async fn save_heartbeat(of: HeartbeatOf<'_>, details: String) -> Result<(), Error>;
    async fn heartbeat(instance: &InstanceId, activity: &str) -> Result<Option<String>, Error>;
    async fn delete_bulk(filter: InstanceFilter) -> Result<DeleteInstanceResult, Error>;
    async fn prune(instance: &InstanceId, options: PruneOptions) -> Result<PruneResult, Error>;
    async fn prune_bulk(filter: InstanceFilter, options: PruneOptions) -> Result<PruneResult, Error>;
} }

pass_on! { InspectStore for FaultyStore {
    async fn state(instance: &InstanceId) -> Result<Option<InstanceState>, Error>;
    async fn info(instance: &InstanceId) -> Result<Option<InstanceInfo>, Error>;
    async fn tree(instance: &InstanceId) -> Result<InstanceTree, Error>;
    async fn list(status: Option<ListedStatus>) -> Result<Vec<String>, Error>;
    async fn executions(instance: &InstanceId) -> Result<Vec<ExecutionInfo>, Error>;
    async fn history(instance: &InstanceId, execution: ExecutionId, only: Option<EventId>) -> Result<Vec<HistoryEvent>, Error>;
    async fn kv(instance: &InstanceId, key: Option<&str>) -> Result<Vec<KvEntry>, Error>;
    async fn metrics() -> Result<(SystemMetrics, QueueDepths), Error>;
    async fn stats(instance: &InstanceId) -> Result<Option<SystemStats>, Error>;
    async fn problems() -> Result<Vec<ProblemRow>, Error>;
} }

/// A source of work and what its worker is told.
type Opened = (Box<dyn WorkSource>, mpsc::UnboundedReceiver<Control>);

pass_on! { Broker for FaultyBroker {
    or Err(outlast_broker::Error::unavailable("a fault of a test")); async fn publish(items: Vec<Dispatch>) -> Result<(), outlast_broker::Error>;
    or Vec::new(); async fn request(shard: ShardId, request: ShardRequest) -> Vec<ReportReply>;
    async fn withdraw(what: Withdrawal) -> Result<(), outlast_broker::Error>;
    async fn pull(worker: WorkerProfile) -> Result<Opened, outlast_broker::Error>;
    async fn own(shards: &[ShardId], receiver: mpsc::UnboundedSender<ShardMessage>) -> Result<(), outlast_broker::Error>;
    async fn disown(shards: &[ShardId], receiver: &mpsc::UnboundedSender<ShardMessage>) -> ();
    fn notify(shard: ShardId, notice: ShardNotice) -> ();
    fn publish_status(instance: &InstanceId, state: Option<&InstanceState>, begun_by: Option<&MessageId>) -> ();
    fn watch(instance: &InstanceId) -> StatusWatch;
    fn state() -> BrokerState;
} }
