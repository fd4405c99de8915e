//! Stores to test, and turns to write.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use outlast_core::{
    Epoch, EventId, EventKind, ExecutionId, Expected, HistoryEvent, InboxSeq, InstanceId, InstanceState,
    InstanceStatus, Message, MessageId, MessageKind, Millis, NodeId, ShardId, StartMessage, TagFilter, Turn,
};
use outlast_storage::postgres::{PostgresOptions, PostgresStore};
use outlast_storage::sqlite::SqliteStore;
use outlast_storage::{
    CommitReply, FencedTurn, HeldShard, NodeInfo, StartConflict, StartReceipt, StartRequest, Store, TurnOutcome,
    WorkerInfo,
};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Executor};

/// Long enough for a slow machine, short enough for a test that waits for its end.
pub(crate) const LEASE: Duration = Duration::from_secs(1);

/// Makes a test for each store.
macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let store = outlast_storage::sqlite::SqliteStore::open_in_memory().unwrap();
                super::$test(&store).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let directory = tempfile::tempdir().unwrap();
                let store = crate::fixture::sqlite(&directory);
                super::$test(&store).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let database = crate::fixture::Database::new();
                let store = database.connect().await;
                super::$test(&store).await;
                database.drop_schema().await;
            })*
        }
    };
}
pub(crate) use on_every_store;

pub(crate) fn sqlite(directory: &tempfile::TempDir) -> SqliteStore {
    SqliteStore::open(directory.path().join("db").to_str().unwrap()).unwrap()
}

/// A schema of its own in the server that the environment names.
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) options: PostgresOptions,
}

impl Database {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let url = std::env::var("OUTLAST_POSTGRES_URL")
            .expect("set OUTLAST_POSTGRES_URL to a server, or run ./dev test, which starts one");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
        let schema = format!("t{}_{}_{now}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self { url, options: PostgresOptions { schema, lease: LEASE, connections: 4, ..PostgresOptions::default() } }
    }

    pub(crate) async fn connect(&self) -> PostgresStore {
        PostgresStore::connect(&self.url, self.options.clone()).await.unwrap()
    }

    /// A connection beside the store, for what only a person or a fault does.
    pub(crate) async fn open(&self) -> PgConnection {
        let options: PgConnectOptions = self.url.parse().unwrap();
        options.options([("search_path", &self.options.schema)]).connect().await.unwrap()
    }

    pub(crate) async fn execute(&self, sql: &str) {
        let mut db = self.open().await;
        db.execute(sqlx::AssertSqlSafe(sql.to_owned())).await.unwrap();
    }

    pub(crate) async fn drop_schema(&self) {
        self.execute(&format!("DROP SCHEMA {} CASCADE", self.options.schema)).await;
    }
}

pub(crate) fn id(text: &str) -> InstanceId {
    InstanceId::new(text)
}

pub(crate) fn start_message(message: &str, orchestration: &str) -> Message {
    let start = StartMessage {
        name: orchestration.to_owned(),
        version: None,
        input: "in".to_owned(),
        parent: None,
        traceparent: None,
    };
    Message { id: MessageId::new(message), kind: MessageKind::Start(start) }
}

pub(crate) fn raise(message: &str) -> Message {
    let kind = MessageKind::Raise { name: "event".to_owned(), data: message.to_owned() };
    Message { id: MessageId::new(message), kind }
}

pub(crate) fn enqueue(message: &str, queue: &str) -> Message {
    let kind = MessageKind::Enqueue { queue: queue.to_owned(), data: message.to_owned() };
    Message { id: MessageId::new(message), kind }
}

pub(crate) async fn start(store: &dyn Store, instance: &str) -> StartReceipt {
    let message = start_message(&format!("start {instance}"), "orchestration");
    let request = StartRequest { instance: id(instance), message, on_conflict: StartConflict::UseExisting };
    store.start(request).await.unwrap()
}

/// A node that holds every shard.
pub(crate) struct Owner {
    pub(crate) node: NodeId,
    pub(crate) held: Vec<HeldShard>,
}

pub(crate) async fn join(store: &dyn Store, name: &str) -> NodeId {
    let node = NodeId::new(name);
    let handlers = vec![("orchestration".to_owned(), "1.0.0".to_owned())];
    let filter = TagFilter::default_and(["gpu"]);
    let worker = Some(WorkerInfo { filter, activities: vec!["Echo".to_owned(), "Say".to_owned()] });
    store.join(NodeInfo { id: node.clone(), handlers, worker }).await.unwrap();
    node
}

impl Owner {
    pub(crate) async fn of_all(store: &dyn Store) -> Self {
        let node = join(store, "owner").await;
        let all: Vec<ShardId> = (0..store.shards()).map(ShardId).collect();
        let held = store.acquire(&node, &all).await.unwrap();
        assert_eq!(held.len(), all.len());
        Self { node, held }
    }

    pub(crate) fn epoch(&self, shard: ShardId) -> Epoch {
        self.held.iter().find(|held| held.shard == shard).unwrap().epoch
    }

    /// What this owner would commit for an instance as it stands, with these events more.
    pub(crate) async fn turn(&self, store: &dyn Store, instance: &str, events: Vec<EventKind>) -> FencedTurn {
        let loaded = store.load(&id(instance)).await.unwrap().unwrap();
        let before = loaded.state.clone();
        let mut state = before.clone();
        let expected = Expected { execution: state.execution, last_event_id: state.last_event_id };
        let mut stored = Vec::new();
        for kind in events {
            state.last_event_id = state.last_event_id.next();
            if kind.is_terminal() {
                state.status = InstanceStatus::Completed;
                state.completed_at = Some(store.now());
            }
            stored.push((state.execution, event(state.last_event_id, kind, store.now())));
        }
        state.version = "1.0.0".to_owned();
        let turn = Turn { expected, events: stored, state, ..Turn::default() };
        let (shard, epoch) = (loaded.shard, self.epoch(loaded.shard));
        FencedTurn { instance: id(instance), shard, epoch, before, turn, move_to: None, mailed: None }
    }
}

pub(crate) fn event(event_id: EventId, kind: EventKind, at: Millis) -> HistoryEvent {
    HistoryEvent { event_id, source_event_id: None, message_id: None, at, kind }
}

pub(crate) fn status_updated(text: &str) -> EventKind {
    EventKind::CustomStatusUpdated { status: Some(text.to_owned()) }
}

pub(crate) fn completed() -> EventKind {
    EventKind::OrchestrationCompleted { output: "out".to_owned() }
}

pub(crate) async fn commit_one(store: &dyn Store, turn: FencedTurn) -> TurnOutcome {
    let CommitReply { outcomes, .. } = store.commit(vec![turn]).await.unwrap();
    assert_eq!(outcomes.len(), 1);
    outcomes.into_iter().next().unwrap()
}

pub(crate) fn is_committed(outcome: &TurnOutcome) -> bool {
    matches!(outcome, TurnOutcome::Committed { .. })
}

pub(crate) async fn state(store: &dyn Store, instance: &str) -> InstanceState {
    store.state(&id(instance)).await.unwrap().unwrap()
}

pub(crate) async fn history(store: &dyn Store, instance: &str) -> Vec<HistoryEvent> {
    store.history(&id(instance), ExecutionId(1), None).await.unwrap()
}

/// Ids of the messages that wait for an instance, in order, with their rows.
pub(crate) async fn inbox(store: &dyn Store, instance: &str) -> Vec<(InboxSeq, String)> {
    let loaded = store.load(&id(instance)).await.unwrap().unwrap();
    loaded.inbox.iter().map(|row| (row.seq.unwrap(), row.message.id.as_str().to_owned())).collect()
}
