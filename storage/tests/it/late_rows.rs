//! Rows that become visible late, and a database that goes back: what was read before is not taken for what is known.

use std::time::Duration;

use outlast_core::{Message, MessageId, MessageKind, NodeId, encode};
use outlast_storage::postgres::PostgresStore;
use outlast_storage::{FencedTurn, InboxCursor, LeaseStore, Mailed, Store, TurnOutcome, TurnStore};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};

use crate::fixture::{
    Database, LEASE, Owner, commit_one, completed, enqueue, id, inbox, is_committed, join, on_every_store, raise,
    start, start_message, status_updated,
};

on_every_store!(a_mailed_start_is_compared_with_its_row);

async fn a_mailed_start_is_compared_with_its_row(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    let seq = start(store, "a").await.seq.unwrap();
    let turn = async |mailed: Message| -> FencedTurn {
        let mut turn = owner.turn(store, "a", vec![status_updated("first")]).await;
        turn.turn.consumed = vec![seq];
        turn.mailed = Some(Mailed::new(seq, &mailed));
        turn
    };
    let mut forged = start_message("start a", "orchestration");
    if let MessageKind::Start(start) = &mut forged.kind {
        start.input = "forged".to_owned();
    }
    assert!(matches!(commit_one(store, turn(forged).await).await, TurnOutcome::Conflict));
    assert_eq!(inbox(store, "a").await.len(), 1);
    assert!(is_committed(&commit_one(store, turn(start_message("start a", "orchestration")).await).await));
    assert!(inbox(store, "a").await.is_empty());
}

/// A row in an inbox whose transaction stays open.
async fn open_row<'c>(db: &'c mut PgConnection, receiver: &str, shard: u16) -> sqlx::Transaction<'c, sqlx::Postgres> {
    let mut slow = db.begin().await.unwrap();
    let kind = MessageKind::Raise { name: "event".to_owned(), data: String::new() };
    let data = encode(&Message { id: MessageId::new("early"), kind });
    let sql = "INSERT INTO inbox (shard, instance, message_id, data) VALUES ($1, $2, 'early', $3)";
    slow.execute(sqlx::query(sql).bind(shard.cast_signed()).bind(receiver).bind(data)).await.unwrap();
    slow
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_of_several_pages_is_followed_by_one_that_finds_what_became_visible_behind_it() {
    let database = Database::new();
    let store = database.connect().await;
    Owner::of_all(&store).await;
    let shard = start(&store, "late").await.shard;
    let shards: Vec<_> = (0..store.shards()).map(outlast_core::ShardId).collect();
    let mut db = database.open().await;
    let slow = open_row(&mut db, "late", shard.0).await;
    for number in 0..6 {
        start(&store, &format!("i{number}")).await;
    }
    // The first page is read while the row's transaction is open, the others when it is not any more.
    let mut page = store.arrivals(&shards, InboxCursor::default(), 3).await.unwrap();
    slow.commit().await.unwrap();
    // A transaction that is open from now on keeps no horizon back to before the row.
    let mut seen = 0;
    while page.more {
        start(&store, &format!("more{seen}")).await;
        page = store.arrivals(&shards, page.next, 3).await.unwrap();
        assert!(page.receivers.iter().all(|wake| wake.instance != id("late")), "it lies behind");
        seen += 1;
        assert!(seen < 20);
    }
    let next = store.arrivals(&shards, page.next, 100).await.unwrap();
    assert!(next.receivers.iter().any(|wake| wake.instance == id("late")), "{next:?}");
    database.drop_schema().await;
}

/// Takes the tables back to what they were.
async fn renewed(store: &PostgresStore, node: &NodeId) -> Option<String> {
    store.renew(node).await.unwrap().set_back
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_knows_less_than_it_has_acknowledged_is_noticed_once() {
    let database = Database::new();
    let store = database.connect().await;
    let node = join(&store, "node").await;
    assert_eq!(renewed(&store, &node).await, None);
    database.execute("CREATE TABLE saved AS SELECT * FROM nodes").await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(renewed(&store, &node).await, None);
    let restore = "DELETE FROM nodes; INSERT INTO nodes SELECT * FROM saved";
    database.execute(restore).await;
    let reason = renewed(&store, &node).await.unwrap();
    assert!(reason.contains("older state"), "{reason}");
    assert_eq!(renewed(&store, &node).await, None);
    // Also when what notices it is an announcement, and when the node did not exist yet.
    database.execute(restore).await;
    join(&store, "node").await;
    assert!(renewed(&store, &node).await.is_some());
    database.execute("DELETE FROM nodes").await;
    assert!(renewed(&store, &node).await.is_some());
    assert_eq!(renewed(&store, &node).await, None);
    // A lease that has ended, and one that was made longer or shorter, are none of that.
    tokio::time::sleep(LEASE + Duration::from_millis(100)).await;
    assert_eq!(renewed(&store, &node).await, None);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_beside_the_end_of_a_life_is_not_for_the_next() {
    let database = Database::new();
    let store = database.connect().await;
    let owner = Owner::of_all(&store).await;
    let shard = start(&store, "a").await.shard;
    let mut end = owner.turn(&store, "a", vec![completed()]).await;
    end.turn.consumed = inbox(&store, "a").await.iter().map(|(seq, _)| *seq).collect();
    let mut db = database.open().await;
    let slow = open_row(&mut db, "a", shard.0).await;
    assert!(is_committed(&commit_one(&store, end).await));
    slow.commit().await.unwrap();
    let request = outlast_storage::StartRequest {
        instance: id("a"),
        message: start_message("anew", "orchestration"),
        on_conflict: outlast_storage::StartConflict::TerminateExisting,
    };
    outlast_storage::CallStore::start(&store, request).await.unwrap();
    let waiting: Vec<String> = inbox(&store, "a").await.into_iter().map(|(_, id)| id).collect();
    assert_eq!(waiting, ["anew"]);
    for message in [enqueue("q", "queue"), raise("r")] {
        outlast_storage::CallStore::send(&store, &id("a"), message, outlast_storage::SendOptions::first_try(10))
            .await
            .unwrap();
    }
    assert_eq!(inbox(&store, "a").await.len(), 3);
    database.drop_schema().await;
}
