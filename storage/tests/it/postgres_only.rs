//! What only a cluster's store has to show: dead nodes, several processes, other transactions in the way.

use std::time::Duration;

use outlast_core::{ActivityKey, EventId, ExecutionId, ShardId, WorkerId};
use outlast_storage::postgres::{PostgresOptions, PostgresStore, Roles};
use outlast_storage::{
    CallStore, DeleteOptions, Error, HeartbeatOf, InboxCursor, InspectStore, LeaseStore, SendOptions, SessionClaim,
    StartConflict, StartRequest, TurnOutcome, TurnStore,
};
use sqlx::{Connection, Executor};

use crate::fixture::{
    Database, LEASE, Owner, commit_one, enqueue, id, is_committed, join, start, start_message, status_updated,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_nodes_shards_are_taken_and_its_commits_refused() {
    let database = Database::new();
    let (dead, heir) = (database.connect().await, database.connect().await);
    let owner = Owner::of_all(&dead).await;
    start(&dead, "a").await;
    let late = owner.turn(&dead, "a", vec![status_updated("late")]).await;
    let node = join(&heir, "heir").await;
    let all: Vec<ShardId> = (0..heir.shards()).map(ShardId).collect();
    assert!(heir.acquire(&node, &all).await.unwrap().is_empty(), "the owner's lease has not ended");
    // The owner is silent; the heir renews, and is connected for a whole lease.
    let mut view = heir.renew(&node).await.unwrap();
    for _ in 0..40 {
        if view.owners.iter().all(Option::is_none) {
            break;
        }
        tokio::time::sleep(LEASE / 10).await;
        view = heir.renew(&node).await.unwrap();
    }
    assert_eq!(view.nodes.len(), 1, "the dead node is not shown");
    let taken = heir.acquire(&node, &all).await.unwrap();
    assert_eq!(taken.len(), all.len());
    assert!(matches!(commit_one(&dead, late).await, TurnOutcome::Fenced));
    // It wakes up, and sees that it holds nothing.
    assert!(dead.renew(&owner.node).await.unwrap().held.is_empty());
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ended_without_a_thief_is_still_good() {
    let database = Database::new();
    let store = database.connect().await;
    let owner = Owner::of_all(&store).await;
    start(&store, "a").await;
    tokio::time::sleep(LEASE + Duration::from_millis(200)).await;
    let turn = owner.turn(&store, "a", vec![status_updated("x")]).await;
    assert!(is_committed(&commit_one(&store, turn).await));
    assert_eq!(store.renew(&owner.node).await.unwrap().held.len(), usize::from(store.shards()));
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_workers_sessions_are_free() {
    let database = Database::new();
    let (dead, heir) = (database.connect().await, database.connect().await);
    join(&dead, "dead").await;
    let heir_node = join(&heir, "heir").await;
    let (first, second) = (WorkerId::new("dead"), WorkerId::new("heir"));
    let idle = Duration::from_secs(60);
    assert_eq!(dead.claim_session("s", &first, idle).await.unwrap(), SessionClaim::Mine);
    assert_eq!(heir.claim_session("s", &second, idle).await.unwrap(), SessionClaim::Other(first));
    tokio::time::sleep(LEASE + Duration::from_millis(100)).await;
    heir.renew(&heir_node).await.unwrap();
    assert_eq!(heir.session_owners(&["s".to_owned()]).await.unwrap(), [None]);
    assert_eq!(heir.claim_session("s", &second, idle).await.unwrap(), SessionClaim::Mine);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_slow_transaction_is_not_missed() {
    let database = Database::new();
    let store = database.connect().await;
    Owner::of_all(&store).await;
    let shard = start(&store, "a").await.shard;
    let cursor = store.load(&id("a")).await.unwrap().unwrap().cursor;
    let swept = store.arrivals(&[shard], InboxCursor::default(), 10).await.unwrap().next;
    // A row that was numbered first becomes visible last.
    let mut db = database.open().await;
    let mut slow = db.begin().await.unwrap();
    let early = outlast_core::encode(&enqueue("early", "queue"));
    let sql = "INSERT INTO inbox (shard, instance, message_id, queue, data) VALUES ($1, 'a', 'early', 'queue', $2)";
    slow.execute(sqlx::query(sql).bind(shard.0.cast_signed()).bind(early)).await.unwrap();
    store.send(&id("a"), enqueue("late", "queue"), SendOptions::first_try(10)).await.unwrap();
    let (rows, cursor) = store.inbox(&id("a"), cursor).await.unwrap();
    assert!(rows.iter().any(|row| row.message.id.as_str() == "late"));
    let swept = store.arrivals(&[shard], swept, 10).await.unwrap().next;
    slow.commit().await.unwrap();
    let (rows, _) = store.inbox(&id("a"), cursor).await.unwrap();
    assert!(rows.iter().any(|row| row.message.id.as_str() == "early"));
    assert!(!store.arrivals(&[shard], swept, 10).await.unwrap().receivers.is_empty());
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_waits_for_a_commit_under_way() {
    let database = Database::new();
    let (dead, heir) = (database.connect().await, std::sync::Arc::new(database.connect().await));
    Owner::of_all(&dead).await;
    let node = join(heir.as_ref(), "heir").await;
    tokio::time::sleep(LEASE + Duration::from_millis(200)).await;
    heir.renew(&node).await.unwrap();
    // What `commit_turns` takes first.
    let mut db = database.open().await;
    let mut commit = db.begin().await.unwrap();
    commit.execute("SELECT 1 FROM nodes WHERE id = 'owner' FOR KEY SHARE").await.unwrap();
    let all: Vec<ShardId> = (0..heir.shards()).map(ShardId).collect();
    let (asking, count) = (std::sync::Arc::clone(&heir), all.len());
    let takeover = tokio::spawn(async move { asking.acquire(&node, &all).await.unwrap().len() });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!takeover.is_finished(), "an epoch was raised under a commit");
    commit.commit().await.unwrap();
    assert_eq!(takeover.await.unwrap(), count);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_do_not_see_each_other_and_history_is_append_only() {
    let (first, second) = (Database::new(), Database::new());
    let (one, other) = (first.connect().await, second.connect().await);
    let owner = Owner::of_all(&one).await;
    start(&one, "a").await;
    let turn = owner.turn(&one, "a", vec![status_updated("x")]).await;
    assert!(is_committed(&commit_one(&one, turn).await));
    assert!(other.load(&id("a")).await.unwrap().is_none());
    let changed = std::panic::AssertUnwindSafe(first.execute("UPDATE history SET at = 0"));
    assert!(futures::FutureExt::catch_unwind(changed).await.is_err());
    first.drop_schema().await;
    second.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_refused_with_the_reason() {
    let database = Database::new();
    let with = |change: fn(&mut PostgresOptions)| {
        let mut options = database.options.clone();
        change(&mut options);
        options
    };
    let connect = async |url: &str, options| match PostgresStore::connect(url, options).await {
        Err(Error::Unusable(text)) => text,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("connected"),
    };
    let text = connect(&database.url, with(|options| options.schema = "Quoted\"".to_owned())).await;
    assert!(text.contains("lowercase letters"), "{text}");
    let text = connect(&database.url, with(|options| options.migrate = false)).await;
    assert!(text.contains("run the migration"), "{text}");
    assert!(connect("postgres//", database.options.clone()).await.contains("URL is not valid"));
    let wrong = database.url.replacen("outlast:", "outlast:wrong", 1);
    if wrong != database.url {
        assert!(connect(&wrong, database.options.clone()).await.contains("password"));
    }
    database.connect().await;
    database.execute("INSERT INTO migrations (step) VALUES (1000), (1001)").await;
    assert!(connect(&database.url, database.options.clone()).await.contains("upgrade the program"));
    database.drop_schema().await;
}

#[tokio::test]
async fn a_migration_makes_functions_anew_and_leaves_them_their_authority() {
    let database = Database::new();
    database.connect().await;
    for sql in [
        "ALTER FUNCTION delete_tree SECURITY DEFINER",
        "DELETE FROM migrations WHERE step >= 6",
        "DROP INDEX instances_ended",
        "CREATE OR REPLACE FUNCTION now_ms() RETURNS int8 LANGUAGE sql VOLATILE RETURN 42",
        "DROP FUNCTION save_heartbeat",
        "DROP FUNCTION hold_since",
        "UPDATE functions SET hash = ''",
    ] {
        database.execute(sql).await;
    }
    let has_authority = async |name: &str| -> bool {
        let sql = "SELECT prosecdef FROM pg_proc WHERE proname = $1 AND pronamespace = current_schema()::regnamespace";
        sqlx::query_scalar(sql).bind(name).fetch_one(&mut database.open().await).await.unwrap()
    };
    let store = database.connect().await;
    assert!(store.now().0 > 42);
    assert!(has_authority("delete_tree").await);
    for new in ["save_heartbeat", "hold_since"] {
        assert!(has_authority(new).await, "{new} is new since, and the schema has roles");
    }
    assert!(!has_authority("commit_group").await);
    drop(store);
    database.drop_schema().await;
}

/// Roles of the test's own, and who acts in one of them.
struct Granted {
    database: Database,
    roles: Roles,
}

impl Granted {
    async fn new() -> Self {
        let database = Database::new();
        let owner = database.connect().await;
        let name = |what: &str| format!("{}_{what}", database.options.schema);
        let (runtime, worker, client, retention) = (name("runtime"), name("worker"), name("client"), name("retention"));
        let roles = Roles { runtime, worker, client, retention };
        for role in [&roles.runtime, &roles.worker, &roles.client, &roles.retention] {
            database.execute(&format!("CREATE ROLE {role}")).await;
        }
        PostgresStore::grant(&database.url, &database.options, &roles).await.unwrap();
        drop(owner);
        Self { database, roles }
    }

    async fn acting_as(&self, role: &str) -> PostgresStore {
        let options = PostgresOptions { migrate: false, ..self.database.options.clone() };
        let url = format!("{}?options=-c%20role%3D{role}", self.database.url);
        PostgresStore::connect(&url, options).await.unwrap()
    }

    async fn drop(self) {
        self.database.drop_schema().await;
        for role in [&self.roles.runtime, &self.roles.worker, &self.roles.client, &self.roles.retention] {
            self.database.execute(&format!("DROP ROLE {role}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_have_what_they_need_and_no_more() {
    let granted = Granted::new().await;
    let roles = &granted.roles;
    let (client, runtime) = (granted.acting_as(&roles.client).await, granted.acting_as(&roles.runtime).await);
    let (worker, retention) = (granted.acting_as(&roles.worker).await, granted.acting_as(&roles.retention).await);
    // Each does its work.
    start(&client, "a").await;
    client.send(&id("a"), enqueue("q", "queue"), SendOptions::first_try(10)).await.unwrap();
    let owner = Owner::of_all(&runtime).await;
    let mut turn = owner.turn(&runtime, "a", vec![crate::fixture::completed()]).await;
    turn.turn.consumed = crate::fixture::inbox(&runtime, "a").await.iter().map(|(seq, _)| *seq).collect();
    assert!(is_committed(&commit_one(&runtime, turn).await));
    join(&worker, "worker").await;
    let session = worker.claim_session("s", &WorkerId::new("worker"), LEASE).await.unwrap();
    assert_eq!(session, SessionClaim::Mine);
    let key = ActivityKey { instance: id("a"), execution: ExecutionId(1), event: EventId(1) };
    let of = HeartbeatOf { key: &key, scheduled_at: worker.now(), activity: "activity" };
    worker.save_heartbeat(of, "details".to_owned()).await.unwrap();
    worker.leave(&outlast_core::NodeId::new("worker")).await.unwrap();
    // Nobody else may delete, and the worker starts nothing and owns nothing.
    for store in [&client, &runtime, &worker] {
        assert!(matches!(store.delete(&id("a"), DeleteOptions::first_try(false)).await, Err(Error::Forbidden(_))));
    }
    let message = crate::fixture::start_message("m", "orchestration");
    let on_conflict = outlast_storage::StartConflict::UseExisting;
    let started = worker.start(outlast_storage::StartRequest { instance: id("b"), message, on_conflict }).await;
    assert!(matches!(started, Err(Error::Forbidden(_))));
    let taken = worker.acquire(&outlast_core::NodeId::new("worker"), &[ShardId(0)]).await;
    assert!(matches!(taken, Err(Error::Forbidden(_))));
    let mut db = granted.database.open().await;
    let histories = ["UPDATE history SET at = 0", "DELETE FROM history", "CREATE TABLE more (x int)"];
    let others = [
        "UPDATE nodes SET lease_until = 0",
        "DELETE FROM nodes",
        "UPDATE shards SET epoch = epoch + 1",
        "DELETE FROM inbox",
        "INSERT INTO inbox (shard, instance, message_id, data) VALUES (0, 'a', 'x', '')",
        "UPDATE instances SET status = 'Failed'",
    ];
    for (role, refused) in [
        (&roles.runtime, &histories[..]),
        (&roles.retention, &histories[..]),
        (&roles.worker, &histories[..]),
        (&roles.worker, &others[..]),
        (&roles.client, &histories[..]),
        (&roles.client, &others[..4]),
        (&roles.client, &others[5..]),
    ] {
        for sql in refused {
            db.execute(sqlx::AssertSqlSafe(format!("SET ROLE {role}"))).await.unwrap();
            let refused = db.execute(*sql).await;
            assert!(refused.is_err(), "{role} may {sql}");
        }
    }
    assert_eq!(retention.delete(&id("a"), DeleteOptions::first_try(false)).await.unwrap().instances_deleted, 1);
    drop((client, runtime, worker, retention, db));
    granted.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_nobody_can_have_disturbs_no_other_read() {
    let database = Database::new();
    let store = database.connect().await;
    start(&store, "a").await;
    for _ in 0..50 {
        let (nobody, (a, b)) = (id("a\0"), (id("a"), id("b")));
        let (none, a, b) = tokio::join!(store.state(&nobody), store.state(&a), store.state(&b));
        assert!(none.unwrap().is_none() && a.unwrap().is_some() && b.unwrap().is_none());
    }
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grandchild_that_begins_during_a_deletion_goes_with_its_tree() {
    let database = Database::new();
    let store = std::sync::Arc::new(database.connect().await);
    for name in ["root", "child", "grandchild"] {
        start(store.as_ref(), name).await;
    }
    database.execute("UPDATE instances SET parent = 'root' WHERE id = 'child'").await;
    // A turn of the child that starts the grandchild: it has changed its row and has not committed yet.
    let mut db = database.open().await;
    let mut turn = db.begin().await.unwrap();
    turn.execute("UPDATE instances SET last_event_id = 2 WHERE id = 'child'").await.unwrap();
    turn.execute("UPDATE instances SET parent = 'child' WHERE id = 'grandchild'").await.unwrap();
    let asking = std::sync::Arc::clone(&store);
    let deleting = tokio::spawn(async move { asking.delete(&id("root"), DeleteOptions::first_try(true)).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!deleting.is_finished(), "a tree was deleted under a commit");
    turn.commit().await.unwrap();
    assert_eq!(deleting.await.unwrap().unwrap().instances_deleted, 3);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_with_large_events_is_written_in_several_transactions() {
    let database = Database::new();
    let store = database.connect().await;
    let owner = Owner::of_all(&store).await;
    let text = "x".repeat(3 << 20);
    let mut group = Vec::new();
    for number in 0..12 {
        let name = format!("i{number}");
        start(&store, &name).await;
        group.push(owner.turn(&store, &name, vec![status_updated(&text)]).await);
    }
    group[5].epoch = group[5].epoch.next();
    let outcomes = store.commit(group).await.unwrap().outcomes;
    assert_eq!(outcomes.iter().map(is_committed).collect::<Vec<_>>(), (0..12).map(|n| n != 5).collect::<Vec<_>>());
    let sql = "SELECT count(DISTINCT xmin::text) FROM history";
    let transactions: i64 = sqlx::query_scalar(sql).fetch_one(&mut database.open().await).await.unwrap();
    assert_eq!(transactions, 2);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_instance_that_clears_its_inbox_leaves_a_new_start_alone() {
    let database = Database::new();
    let store = database.connect().await;
    start(&store, "a").await;
    let owner = Owner::of_all(&store).await;
    let mut last = owner.turn(&store, "a", vec![crate::fixture::completed()]).await;
    last.turn.consumed = crate::fixture::inbox(&store, "a").await.iter().map(|(seq, _)| *seq).collect();
    assert!(is_committed(&commit_one(&store, last).await));
    let leftovers = owner.turn(&store, "a", Vec::new()).await;
    // As a new start does that this turn has not read.
    database
        .execute("INSERT INTO inbox (shard, instance, message_id, data) SELECT shard, id, 'new', '' FROM instances")
        .await;
    assert!(is_committed(&commit_one(&store, leftovers).await));
    let mut db = database.open().await;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM inbox").fetch_one(&mut db).await.unwrap();
    assert_eq!(left, 1);
    drop((db, store));
    database.drop_schema().await;
}

#[test]
fn a_store_whose_executor_has_ended_says_so_and_what_to_do() {
    let database = Database::new();
    let executor = || tokio::runtime::Runtime::new().unwrap();
    let first = executor();
    let store = first.block_on(database.connect());
    drop(first);
    let second = executor();
    let refused = second.block_on(async {
        let read = store.state(&id("a")).await.map(drop);
        let listed = store.list(None).await.map(drop);
        let (message, on_conflict) = (start_message("m", "orchestration"), StartConflict::UseExisting);
        let started = store.start(StartRequest { instance: id("a"), message, on_conflict }).await.map(drop);
        [read, listed, started]
    });
    for refused in refused {
        let Err(Error::Unusable(text)) = &refused else { panic!("{refused:?}") };
        assert!(
            text.contains("has ended") && text.contains("connect a provider in the runtime that uses it"),
            "{text}"
        );
    }
    drop(store);
    second.block_on(database.drop_schema());
}
