//! Guarantees 4 and 5: what comes from outside is durable when the call returns, and applied at most once.

use outlast_core::{EventKind, ExecutionId, Fork, KvEntry, MessageId, ShardId, StartSnapshot};
use outlast_storage::{
    DeleteOptions, Error, InstanceFilter, Loaded, PruneOptions, SendOptions, StartConflict, StartOutcome, StartRequest,
    Store, TurnOutcome,
};

use crate::fixture::{
    Owner, commit_one, completed, enqueue, history, id, inbox, is_committed, on_every_store, raise, start,
    start_message, state, status_updated,
};

on_every_store!(
    a_start_makes_one_instance,
    a_new_instance_is_known_without_a_read,
    concurrent_starts_make_one_instance,
    a_message_is_applied_once,
    a_queue_has_a_limit_and_an_order,
    an_ended_id_can_be_started_anew,
    a_start_anew_finds_nothing_that_the_end_left,
    a_copy_needs_a_free_id,
    deletion_takes_the_whole_tree,
    pruning_keeps_the_current_execution,
    many_calls_at_once_are_all_written,
);

fn request(instance: &str, message: &str, orchestration: &str, on_conflict: StartConflict) -> StartRequest {
    StartRequest { instance: id(instance), message: start_message(message, orchestration), on_conflict }
}

async fn a_start_makes_one_instance(store: &dyn Store) {
    let first = store.start(request("a", "m1", "one", StartConflict::UseExisting)).await.unwrap();
    assert_eq!((first.outcome, first.shard), (StartOutcome::Started, ShardId::of(&id("a"), store.shards())));
    // The same call again, as after a lost answer, and another one.
    for (message, outcome) in [("m1", StartOutcome::Started), ("m2", StartOutcome::AlreadyExists)] {
        let again = store.start(request("a", message, "one", StartConflict::UseExisting)).await.unwrap();
        assert_eq!(again.outcome, outcome);
    }
    let other = store.start(request("a", "m3", "two", StartConflict::UseExisting)).await;
    assert!(matches!(other, Err(Error::InstanceExists { orchestration, .. }) if orchestration == "one"));
    let fail = store.start(request("a", "m4", "one", StartConflict::Fail)).await;
    assert!(matches!(fail, Err(Error::InstanceExists { .. })));
    assert_eq!(inbox(store, "a").await.len(), 1);
}

async fn a_new_instance_is_known_without_a_read(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    let receipts = futures::future::join_all((0..5).map(|n| start(store, ["a", "b", "c", "d", "e"][n]))).await;
    for (instance, receipt) in ["a", "b", "c", "d", "e"].into_iter().zip(receipts) {
        let message = start_message(&format!("start {instance}"), "orchestration");
        let beginning = StartSnapshot { instance: id(instance), message, seq: receipt.seq.unwrap() };
        let (known, read) = (Loaded::begun(receipt.shard, beginning).unwrap(), store.load(&id(instance)).await);
        let read = read.unwrap().unwrap();
        assert_eq!((&known.state, known.shard, &known.inbox), (&read.state, read.shard, &read.inbox));
        assert!(known.history.is_empty() && read.history.is_empty());
        // From its cursor on nothing is missed that comes later.
        store.send(&id(instance), raise("r"), SendOptions::first_try(10)).await.unwrap();
        assert_eq!(store.inbox(&id(instance), known.cursor).await.unwrap().0.len(), 2);
    }
    // A turn on it takes its message out of the inbox.
    let known = start(store, "f").await;
    let mut turn = owner.turn(store, "f", vec![status_updated("first")]).await;
    turn.turn.consumed = vec![known.seq.unwrap()];
    assert!(is_committed(&commit_one(store, turn).await));
    assert!(inbox(store, "f").await.is_empty());
}

async fn concurrent_starts_make_one_instance(store: &dyn Store) {
    let starts = (0..20).map(|number| {
        store.start(request("a", &format!("m{number}"), &format!("o{}", number % 2), StartConflict::UseExisting))
    });
    let outcomes = futures::future::join_all(starts).await;
    let started = outcomes.iter().filter(|o| matches!(o, Ok(receipt) if receipt.outcome == StartOutcome::Started));
    assert_eq!(started.count(), 1);
    assert_eq!(outcomes.iter().filter(|o| matches!(o, Err(Error::InstanceExists { .. }))).count(), 10);
    assert_eq!(inbox(store, "a").await.len(), 1);
}

async fn a_message_is_applied_once(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    assert!(matches!(
        store.send(&id("a"), raise("r"), SendOptions::first_try(10)).await,
        Err(Error::InstanceNotFound(_))
    ));
    start(store, "a").await;
    for _ in 0..2 {
        store.send(&id("a"), raise("r"), SendOptions::first_try(10)).await.unwrap();
    }
    let rows = inbox(store, "a").await;
    assert_eq!(rows.len(), 2);
    let mut turn = owner.turn(store, "a", vec![status_updated("x")]).await;
    turn.turn.events[0].1.message_id = Some(MessageId::new("r"));
    turn.turn.consumed = rows.iter().map(|(seq, _)| *seq).collect();
    assert!(is_committed(&commit_one(store, turn).await));
    assert_eq!(store.send(&id("a"), raise("r"), SendOptions::first_try(10)).await.unwrap().nudge, None);
    assert!(inbox(store, "a").await.is_empty());
}

async fn a_queue_has_a_limit_and_an_order(store: &dyn Store) {
    start(store, "a").await;
    for number in 0..5 {
        store.send(&id("a"), enqueue(&format!("q{number}"), "queue"), SendOptions::first_try(5)).await.unwrap();
    }
    let full = store.send(&id("a"), enqueue("q5", "queue"), SendOptions::first_try(5)).await;
    assert!(matches!(full, Err(Error::QueueFull { max: 5, .. })), "{full:?}");
    store.send(&id("a"), enqueue("other", "other queue"), SendOptions::first_try(5)).await.unwrap();
    // A retry of what is there is not refused.
    store.send(&id("a"), enqueue("q0", "queue"), SendOptions::first_try(5)).await.unwrap();
    let waiting: Vec<String> = inbox(store, "a").await.into_iter().map(|(_, id)| id).collect();
    assert_eq!(waiting, ["start a", "q0", "q1", "q2", "q3", "q4", "other"]);
}

async fn an_ended_id_can_be_started_anew(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "a").await;
    let again = |message: &'static str| store.start(request("a", message, "new", StartConflict::TerminateExisting));
    assert_eq!(again("m1").await.unwrap().outcome, StartOutcome::Replaced);
    assert_eq!(inbox(store, "a").await.len(), 2);
    // An end that has not seen the new start does not swallow it.
    let mut end = owner.turn(store, "a", vec![completed()]).await;
    assert!(matches!(commit_one(store, end.clone()).await, TurnOutcome::Conflict));
    assert_eq!(inbox(store, "a").await.len(), 2);
    end.turn.consumed = inbox(store, "a").await.iter().map(|(seq, _)| *seq).collect();
    assert!(is_committed(&commit_one(store, end).await));
    assert_eq!(again("m2").await.unwrap().outcome, StartOutcome::Replaced);
    let row = state(store, "a").await;
    assert_eq!((row.execution, row.orchestration.as_str(), row.output), (ExecutionId(2), "new", None));
    assert_eq!(inbox(store, "a").await.len(), 1);
}

async fn a_start_anew_finds_nothing_that_the_end_left(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "a").await;
    start(store, "taken").await;
    // It ends in the turn that starts a child whose id is taken, and is told so.
    let mut turn = owner.turn(store, "a", vec![completed()]).await;
    let (to, message) = (id("taken"), start_message("child", "orchestration"));
    turn.turn.outbound = vec![outlast_core::OutboundMessage { to, message, when_taken: Some(raise("it is taken")) }];
    assert!(is_committed(&commit_one(store, turn).await));
    let message = start_message("anew", "orchestration");
    let on_conflict = StartConflict::TerminateExisting;
    store.start(StartRequest { instance: id("a"), message, on_conflict }).await.unwrap();
    let waiting: Vec<String> = inbox(store, "a").await.into_iter().map(|(_, id)| id).collect();
    assert_eq!(waiting, ["anew"]);
}

async fn a_copy_needs_a_free_id(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "a").await;
    let turn = owner.turn(store, "a", vec![status_updated("one"), status_updated("two")]).await;
    assert!(is_committed(&commit_one(store, turn).await));
    let (row, events) = (state(store, "a").await, history(store, "a").await);
    let kv = vec![KvEntry { key: "k".to_owned(), value: "v".to_owned(), last_updated_at_ms: 7 }];
    let copy = Fork { state: row.clone(), history: events.clone(), kv: kv.clone() };
    let taken = store.import(&id("a"), copy.clone()).await;
    assert!(matches!(taken, Err(Error::InstanceExists { .. })));
    store.import(&id("copy"), copy).await.unwrap();
    assert_eq!(history(store, "copy").await, events);
    assert_eq!(store.kv(&id("copy"), None).await.unwrap(), kv);
    assert_eq!(state(store, "copy").await.last_event_id, row.last_event_id);
    // What is copied counts towards the limit of a history as what is written does.
    let bytes: usize = events.iter().map(|event| outlast_core::encode(&event.kind).len()).sum();
    assert_eq!(state(store, "copy").await.history_bytes, bytes as u64);
}

async fn deletion_takes_the_whole_tree(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "root").await;
    let mut turn = owner.turn(store, "root", vec![status_updated("x")]).await;
    let mut child = start_message("child", "orchestration");
    if let outlast_core::MessageKind::Start(start) = &mut child.kind {
        start.parent = Some(outlast_core::ParentLink {
            instance: id("root"),
            execution: ExecutionId(1),
            event: outlast_core::EventId(1),
            token: outlast_core::Token(1),
        });
    }
    turn.turn.outbound = vec![outlast_core::OutboundMessage { to: id("child"), message: child, when_taken: None }];
    assert!(is_committed(&commit_one(store, turn).await));
    assert_eq!(store.tree(&id("root")).await.unwrap().all_ids, ["root", "child"]);
    assert!(matches!(
        store.delete(&id("child"), DeleteOptions::first_try(true)).await,
        Err(Error::CannotDeleteSubOrchestration(_))
    ));
    assert!(matches!(
        store.delete(&id("root"), DeleteOptions::first_try(false)).await,
        Err(Error::InstanceStillRunning(_))
    ));
    assert!(matches!(
        store.delete(&id("nobody"), DeleteOptions::first_try(true)).await,
        Err(Error::InstanceNotFound(_))
    ));
    let end = owner.turn(store, "root", vec![completed()]).await;
    assert!(is_committed(&commit_one(store, end).await));
    // The child still runs.
    assert!(matches!(
        store.delete(&id("root"), DeleteOptions::first_try(false)).await,
        Err(Error::InstanceStillRunning(_))
    ));
    assert_eq!(store.delete_bulk(InstanceFilter::default()).await.unwrap().instances_deleted, 0);
    let end = owner.turn(store, "child", vec![completed()]).await;
    assert!(is_committed(&commit_one(store, end).await));
    let deleted = store.delete_bulk(InstanceFilter::default()).await.unwrap();
    assert_eq!((deleted.instances_deleted, deleted.executions_deleted, deleted.events_deleted), (2, 2, 3));
    assert!(store.state(&id("child")).await.unwrap().is_none());
    assert!(history(store, "root").await.is_empty());
}

async fn pruning_keeps_the_current_execution(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "a").await;
    for number in 1..=4_u64 {
        let end = EventKind::OrchestrationContinuedAsNew { input: number.to_string() };
        let mut turn = owner.turn(store, "a", vec![end]).await;
        turn.turn.state.status = outlast_core::InstanceStatus::Running;
        turn.turn.state.completed_at = None;
        turn.turn.state.execution = ExecutionId(number + 1);
        turn.turn.state.last_event_id = outlast_core::EventId(1);
        let begun = crate::fixture::event(outlast_core::EventId(1), status_updated("begun"), store.now());
        turn.turn.events.push((ExecutionId(number + 1), begun));
        turn.turn.expected.execution = ExecutionId(number);
        assert!(is_committed(&commit_one(store, turn).await));
    }
    let executions = store.executions(&id("a")).await.unwrap();
    let numbers: Vec<u64> = executions.iter().map(|execution| execution.execution_id).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    assert_eq!((executions[1].status.as_str(), executions[1].event_count), ("ContinuedAsNew", 2));
    assert_eq!(executions[4].status, "Running");
    let kept = PruneOptions { keep_last: Some(3), completed_before: None };
    let pruned = store.prune(&id("a"), kept).await.unwrap();
    assert_eq!(pruned.executions_deleted, 2);
    let all = PruneOptions { keep_last: None, completed_before: Some(u64::MAX >> 1) };
    let pruned = store.prune_bulk(InstanceFilter::default(), all).await.unwrap();
    assert_eq!((pruned.instances_processed, pruned.executions_deleted), (1, 2));
    assert_eq!(store.executions(&id("a")).await.unwrap().len(), 1);
    assert!(matches!(store.prune(&id("b"), PruneOptions::default()).await, Err(Error::InstanceNotFound(_))));
}

async fn many_calls_at_once_are_all_written(store: &dyn Store) {
    let starts = (0..1_000).map(|number| async move { start(store, &format!("i{number}")).await.outcome });
    let outcomes = futures::future::join_all(starts).await;
    assert!(outcomes.iter().all(|outcome| *outcome == StartOutcome::Started));
    let sends = (0..1_000).map(|number| async move {
        store
            .send(&id(&format!("i{}", number % 10)), raise(&format!("r{number}")), SendOptions::first_try(10))
            .await
            .unwrap()
    });
    futures::future::join_all(sends).await;
    for number in 0..10 {
        assert_eq!(inbox(store, &format!("i{number}")).await.len(), 101);
    }
    let (metrics, depths) = store.metrics().await.unwrap();
    assert_eq!((metrics.total_instances, depths.orchestrator_queue), (1_000, 2_000));
}
