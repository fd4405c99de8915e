//! Goal: nothing of a deleted life reaches the next one under its id, and nothing of it stays.
//! Method: senders, turns and heartbeats race forced deletions of their instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outlast_core::{
    ActivityKey, ActivityTimeouts, EventId, EventKind, ExecutionId, Message, MessageId, MessageKind, Millis,
    OutboundMessage, Token,
};
use outlast_storage::{
    CallStore as _, DeleteOptions, Error, FencedTurn, HeartbeatOf, InspectStore as _, SendOptions, Store, TurnOutcome,
    TurnStore as _,
};
use sqlx::{Connection, Executor};

use crate::fixture::{
    Database, Owner, commit_one, completed, enqueue, history, id, inbox, is_committed, on_every_store, start,
};

on_every_store!(
    a_message_that_races_a_forced_deletion_is_refused_or_gone_with_it,
    a_heartbeat_goes_with_the_outcome_of_its_activity,
    a_heartbeat_of_another_life_is_not_kept,
    a_repeated_call_reaches_no_life_that_began_since,
);

async fn a_message_that_races_a_forced_deletion_is_refused_or_gone_with_it(store: &dyn Store) {
    for round in 0..40 {
        start(store, "a").await;
        let stop = AtomicBool::new(false);
        let sender = async |sender: usize| {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let message = enqueue(&format!("{round} {sender} {number}"), "queue");
                match store.send(&id("a"), message, SendOptions::first_try(1_000_000)).await {
                    Ok(_) | Err(Error::InstanceNotFound(_) | Error::Unavailable(_)) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
        };
        let delete = async {
            tokio::time::sleep(Duration::from_micros(round * 150)).await;
            let deleted = store.delete(&id("a"), DeleteOptions::first_try(true)).await;
            stop.store(true, Ordering::Relaxed);
            deleted.unwrap();
        };
        tokio::join!(sender(0), sender(1), sender(2), delete);
        let (_, depths) = store.metrics().await.unwrap();
        assert_eq!(depths.orchestrator_queue, 0, "rows of a deleted instance stayed behind in round {round}");
    }
    start(store, "a").await;
    assert_eq!(inbox(store, "a").await.len(), 1);
}

/// The first try of a call may have been carried out, its answer lost, and the instance deleted and started anew since.
async fn a_repeated_call_reaches_no_life_that_began_since(store: &dyn Store) {
    let send = |message: Message, first_tried| {
        let options = SendOptions { queue_messages_max: 10, first_tried };
        async move { store.send(&id("a"), message, options).await }
    };
    start(store, "a").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let recent = Some(store.now());
    assert!(send(enqueue("older than the call", "queue"), recent).await.unwrap().nudge.is_some());
    assert_eq!(send(enqueue("older than the call", "queue"), recent).await.unwrap().nudge, None);
    store.delete(&id("a"), DeleteOptions { force: true, first_tried: recent }).await.unwrap();
    start(store, "a").await;
    let first_tried = Some(store.now().minus(Duration::from_secs(60)));
    let cancel = MessageKind::Cancel { child: None, reason: String::new() };
    for message in [enqueue("m", "queue"), Message { id: MessageId::new("c"), kind: cancel }] {
        let refused = send(message, first_tried).await;
        assert!(matches!(&refused, Err(Error::InstanceNotFound(of)) if *of == id("a")), "{refused:?}");
    }
    let refused = store.delete(&id("a"), DeleteOptions { force: true, first_tried }).await;
    assert!(matches!(refused, Err(Error::InstanceNotFound(_))), "{refused:?}");
    assert_eq!(inbox(store, "a").await.len(), 1, "its start alone");
}

fn scheduled() -> EventKind {
    EventKind::ActivityScheduled {
        name: "Work".to_owned(),
        input: String::new(),
        session_id: None,
        tag: None,
        token: Token(7),
        attempt: 1,
        first_event_id: None,
        timeouts: ActivityTimeouts::default(),
    }
}

fn finished() -> EventKind {
    EventKind::ActivityCompleted { result: String::new(), run: None }
}

fn key() -> ActivityKey {
    ActivityKey { instance: id("a"), execution: ExecutionId(1), event: EventId(1) }
}

async fn beat(store: &dyn Store, scheduled_at: Millis, details: &str) -> Option<String> {
    let key = key();
    let of = HeartbeatOf { key: &key, scheduled_at, activity: "a/1/1" };
    store.save_heartbeat(of, details.to_owned()).await.unwrap();
    store.heartbeat(&id("a"), "a/1/1").await.unwrap()
}

/// An instance with a running activity; returns when that was scheduled.
async fn with_activity(store: &dyn Store, owner: &Owner) -> Millis {
    start(store, "a").await;
    let turn = owner.turn(store, "a", vec![scheduled()]).await;
    assert!(is_committed(&commit_one(store, turn).await));
    history(store, "a").await[0].at
}

/// The turn that brings the activity's outcome, of which the worker has said that there is a heartbeat.
async fn outcome(store: &dyn Store, owner: &Owner, kinds: Vec<EventKind>) -> FencedTurn {
    let mut turn = owner.turn(store, "a", kinds).await;
    turn.turn.events[0].1.source_event_id = Some(EventId(1));
    turn.turn.heartbeats = vec!["a/1/1".to_owned()];
    turn
}

async fn a_heartbeat_goes_with_the_outcome_of_its_activity(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    let at = with_activity(store, &owner).await;
    assert_eq!(beat(store, at, "one").await.as_deref(), Some("one"));
    assert_eq!(beat(store, at, "two").await.as_deref(), Some("two"));
    let turn = outcome(store, &owner, vec![finished()]).await;
    assert!(is_committed(&commit_one(store, turn).await));
    assert_eq!(store.heartbeat(&id("a"), "a/1/1").await.unwrap(), None);
    // A stale attempt goes on speaking.
    assert_eq!(beat(store, at, "late").await, None);
}

async fn a_heartbeat_of_another_life_is_not_kept(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    let first = with_activity(store, &owner).await;
    beat(store, first, "old").await;
    store.delete(&id("a"), DeleteOptions::first_try(true)).await.unwrap();
    assert_eq!(beat(store, first, "late").await, None);
    tokio::time::sleep(Duration::from_millis(3)).await;
    let second = with_activity(store, &owner).await;
    assert_eq!(beat(store, first, "late").await, None);
    assert_eq!(beat(store, second, "new").await.as_deref(), Some("new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_that_races_the_end_of_its_instance_leaves_no_orphan() {
    let database = Database::new();
    let store = Arc::new(database.connect().await);
    let owner = Owner::of_all(store.as_ref()).await;
    for round in 0..30_u64 {
        let at = with_activity(store.as_ref(), &owner).await;
        let end = outcome(store.as_ref(), &owner, vec![finished(), completed()]).await;
        let speaking = Arc::clone(&store);
        let speaker = tokio::spawn(async move {
            for number in 0..12 {
                beat(speaking.as_ref(), at, &number.to_string()).await;
            }
        });
        tokio::time::sleep(Duration::from_micros(round * 200)).await;
        assert!(is_committed(&commit_one(store.as_ref(), end).await));
        speaker.await.unwrap();
        assert_eq!(store.heartbeat(&id("a"), "a/1/1").await.unwrap(), None, "round {round}");
        store.delete(&id("a"), DeleteOptions::first_try(false)).await.unwrap();
    }
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_under_way_is_waited_for_by_the_turn_that_takes_it_away() {
    let database = Database::new();
    let store = Arc::new(database.connect().await);
    let owner = Owner::of_all(store.as_ref()).await;
    let at = with_activity(store.as_ref(), &owner).await;
    let end = outcome(store.as_ref(), &owner, vec![finished()]).await;
    let mut db = database.open().await;
    let mut speaking = db.begin().await.unwrap();
    let query = sqlx::query("SELECT save_heartbeat('a', 1, 1, $1, 'a/1/1', 'late')").bind(at.0.cast_signed());
    speaking.execute(query).await.unwrap();
    let committing = Arc::clone(&store);
    let turn = tokio::spawn(async move { commit_one(committing.as_ref(), end).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!turn.is_finished(), "the turn did not see the heartbeat");
    speaking.commit().await.unwrap();
    assert!(is_committed(&turn.await.unwrap()));
    assert_eq!(store.heartbeat(&id("a"), "a/1/1").await.unwrap(), None);
    database.drop_schema().await;
}

/// Neither side waits for the other with locks that the other needs: the turn is told to try again.
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_tells_an_instance_under_deletion_tries_again_and_leaves_its_neighbours_alone() {
    let database = Database::new();
    let store = database.connect().await;
    let owner = Owner::of_all(&store).await;
    for name in ["sender", "neighbour", "receiver"] {
        start(&store, name).await;
    }
    let mut db = database.open().await;
    let mut deleting = db.begin().await.unwrap();
    deleting.execute("SELECT delete_tree('receiver', true)").await.unwrap();
    let kind = MessageKind::Raise { name: "event".to_owned(), data: String::new() };
    let message = Message { id: MessageId::new("m"), kind };
    let mut sender = owner.turn(&store, "sender", vec![completed()]).await;
    sender.turn.outbound = vec![OutboundMessage { to: id("receiver"), message: message.clone(), when_taken: None }];
    let neighbour = owner.turn(&store, "neighbour", vec![completed()]).await;
    let outcomes = store.commit(vec![sender.clone(), neighbour]).await.unwrap().outcomes;
    assert!(matches!(outcomes[0], TurnOutcome::Conflict) && is_committed(&outcomes[1]), "{outcomes:?}");
    assert!(matches!(
        store.send(&id("receiver"), message, SendOptions::first_try(10)).await,
        Err(Error::Unavailable(_))
    ));
    deleting.commit().await.unwrap();
    assert!(is_committed(&commit_one(&store, sender).await));
    let (_, depths) = store.metrics().await.unwrap();
    assert_eq!(depths.orchestrator_queue, 0);
    database.drop_schema().await;
}
