//! Guarantees 1, 2, 3 and 6: turns are atomic, alone in their failures, append-only, and consume what they applied.

use outlast_core::{
    ActivityOutcome, EventId, EventKind, ExecutionId, InboxSeq, KvChange, KvEntry, MessageId, MessageKind,
    OutboundMessage, ShardId, Token,
};
use outlast_storage::{InboxCursor, SendOptions, Store, TurnOutcome, Wake};

use crate::fixture::{
    Owner, commit_one, completed, enqueue, history, id, inbox, is_committed, on_every_store, raise, start,
    start_message, state, status_updated,
};

on_every_store!(
    a_turn_is_written_whole,
    one_refused_turn_leaves_its_neighbours,
    an_unexpected_row_is_a_conflict,
    events_are_unique_and_never_change,
    applied_rows_leave_the_inbox_once,
    messages_reach_running_instances_only,
    a_child_is_made_once,
    an_ended_instance_keeps_no_inbox,
    a_turn_after_the_end_takes_what_it_has_read_alone,
    key_values_are_applied_in_order,
    a_move_takes_the_inbox_along,
    reading_on_misses_nothing,
    due_and_pending_are_found,
);

async fn a_turn_is_written_whole(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "a").await;
    let mut turn = owner.turn(store, "a", vec![status_updated("one"), status_updated("two")]).await;
    turn.turn.state.wake_at = Some(store.now());
    turn.turn.state.pending = 3;
    turn.turn.state.waits = "something".to_owned();
    turn.turn.state.custom_status = Some("two".to_owned());
    turn.turn.state.custom_status_version = 2;
    turn.turn.state.history_bytes = 77;
    let written = turn.turn.state.clone();
    assert!(is_committed(&commit_one(store, turn).await));
    assert_eq!(state(store, "a").await, written);
    let events = history(store, "a").await;
    assert_eq!(events.iter().map(|event| event.event_id).collect::<Vec<_>>(), [EventId(1), EventId(2)]);
    assert_eq!(events[1].kind, status_updated("two"));
}

async fn one_refused_turn_leaves_its_neighbours(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    let mut group = Vec::new();
    for number in 0..9 {
        let name = format!("i{number}");
        start(store, &name).await;
        group.push(owner.turn(store, &name, vec![status_updated("x")]).await);
    }
    // Breaks a rule of the schema: an outcome of an event that does not lie before it.
    group[4].turn.events[0].1.source_event_id = Some(EventId(9));
    // Another node was faster.
    group[7].turn.expected.last_event_id = EventId(5);
    let outcomes = store.commit(group).await.unwrap().outcomes;
    for (number, outcome) in outcomes.iter().enumerate() {
        let events = history(store, &format!("i{number}")).await.len();
        match number {
            4 => assert!(matches!(outcome, TurnOutcome::Refused(_)), "{outcome:?}"),
            7 => assert!(matches!(outcome, TurnOutcome::Conflict), "{outcome:?}"),
            _ => assert!(is_committed(outcome), "{number}: {outcome:?}"),
        }
        assert_eq!(events, usize::from(is_committed(outcome)));
    }
}

async fn an_unexpected_row_is_a_conflict(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "a").await;
    let first = owner.turn(store, "a", vec![status_updated("one")]).await;
    let late = first.clone();
    assert!(is_committed(&commit_one(store, first).await));
    assert!(matches!(commit_one(store, late).await, TurnOutcome::Conflict));
    assert_eq!(history(store, "a").await.len(), 1);
}

async fn events_are_unique_and_never_change(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "a").await;
    let mut turn = owner.turn(store, "a", vec![status_updated("one")]).await;
    let double = turn.turn.events[0].clone();
    turn.turn.events.push(double);
    assert!(matches!(commit_one(store, turn).await, TurnOutcome::Refused(_)));
    // Two outcomes of one scheduling event.
    let mut turn = owner.turn(store, "a", vec![status_updated("1"), status_updated("2"), status_updated("3")]).await;
    turn.turn.events[1].1.source_event_id = Some(EventId(1));
    turn.turn.events[2].1.source_event_id = Some(EventId(1));
    assert!(matches!(commit_one(store, turn).await, TurnOutcome::Refused(_)));
    // One message applied twice.
    let mut turn = owner.turn(store, "a", vec![status_updated("1"), status_updated("2")]).await;
    turn.turn.events[0].1.message_id = Some(MessageId::new("m"));
    turn.turn.events[1].1.message_id = Some(MessageId::new("m"));
    assert!(matches!(commit_one(store, turn).await, TurnOutcome::Refused(_)));
    assert!(history(store, "a").await.is_empty());
}

async fn applied_rows_leave_the_inbox_once(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "a").await;
    store.send(&id("a"), raise("r1"), SendOptions::first_try(10)).await.unwrap();
    store.send(&id("a"), raise("r2"), SendOptions::first_try(10)).await.unwrap();
    let rows = inbox(store, "a").await;
    assert_eq!(rows.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), ["start a", "r1", "r2"]);
    let mut turn = owner.turn(store, "a", vec![status_updated("x")]).await;
    turn.turn.consumed = vec![rows[0].0, rows[1].0];
    assert!(is_committed(&commit_one(store, turn).await));
    assert_eq!(inbox(store, "a").await, rows[2..]);
    // A turn that applied a row which is gone applied it for the second time.
    let mut turn = owner.turn(store, "a", vec![status_updated("y")]).await;
    turn.turn.consumed = vec![rows[1].0];
    assert!(matches!(commit_one(store, turn).await, TurnOutcome::Conflict));
    assert_eq!(history(store, "a").await.len(), 1);
}

async fn messages_reach_running_instances_only(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    for name in ["sender", "runs", "ended"] {
        start(store, name).await;
    }
    let end = owner.turn(store, "ended", vec![completed()]).await;
    assert!(is_committed(&commit_one(store, end).await));
    let mut turn = owner.turn(store, "sender", vec![status_updated("x")]).await;
    let to = |name: &str, message| OutboundMessage { to: id(name), message, when_taken: None };
    turn.turn.outbound =
        vec![to("runs", raise("m1")), to("runs", raise("m2")), to("ended", raise("m3")), to("nobody", raise("m4"))];
    turn.turn.held = vec![enqueue("h1", "queue")];
    let TurnOutcome::Committed { wakes } = commit_one(store, turn).await else { panic!("not committed") };
    assert!(wakes.iter().all(|wake| wake.instance == id("runs")), "{wakes:?}");
    assert!(!wakes.is_empty());
    let waiting: Vec<String> = inbox(store, "runs").await.into_iter().map(|(_, id)| id).collect();
    assert_eq!(waiting, ["start runs", "m1", "m2"]);
    assert!(inbox(store, "ended").await.is_empty());
    assert_eq!(inbox(store, "sender").await.last().unwrap().1, "h1");
}

async fn a_child_is_made_once(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "first").await;
    start(store, "second").await;
    let taken = |token| {
        let outcome: ActivityOutcome = Ok("taken".to_owned());
        let (execution, event) = (ExecutionId(1), EventId(1));
        let kind = MessageKind::ChildDone { execution, event, token: Token(token), result: outcome };
        outlast_core::Message { id: MessageId::new(format!("taken {token}")), kind }
    };
    let mut group = Vec::new();
    for (number, sender) in ["first", "second"].into_iter().enumerate() {
        let mut turn = owner.turn(store, sender, vec![status_updated("x")]).await;
        let message = start_message(&format!("child of {sender}"), "child");
        turn.turn.outbound = vec![OutboundMessage { to: id("child"), message, when_taken: Some(taken(number as u64)) }];
        group.push(turn);
    }
    let outcomes = store.commit(group).await.unwrap().outcomes;
    assert!(outcomes.iter().all(is_committed), "{outcomes:?}");
    assert_eq!(state(store, "child").await.orchestration, "child");
    assert_eq!(inbox(store, "child").await.len(), 1);
    assert_eq!(inbox(store, "first").await.len(), 1);
    assert_eq!(inbox(store, "second").await.last().unwrap().1, "taken 1");
    let woken: Vec<&Wake> = outcomes
        .iter()
        .flat_map(|outcome| match outcome {
            TurnOutcome::Committed { wakes } => wakes.iter(),
            _ => [].iter(),
        })
        .collect();
    assert_eq!(woken.iter().map(|wake| wake.instance.as_str()).collect::<Vec<_>>(), ["child", "second"]);
}

async fn an_ended_instance_keeps_no_inbox(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "a").await;
    store.send(&id("a"), enqueue("q1", "queue"), SendOptions::first_try(10)).await.unwrap();
    let mut turn = owner.turn(store, "a", vec![completed()]).await;
    turn.turn.consumed = vec![inbox(store, "a").await[0].0];
    assert!(is_committed(&commit_one(store, turn).await));
    assert!(inbox(store, "a").await.is_empty());
    assert_eq!(store.send(&id("a"), raise("late"), SendOptions::first_try(10)).await.unwrap().nudge, None);
    assert!(inbox(store, "a").await.is_empty());
    // What slipped in beside its end is cleared by a turn that does nothing else.
    let turn = owner.turn(store, "a", Vec::new()).await;
    assert!(is_committed(&commit_one(store, turn).await));
    let turn = owner.turn(store, "a", vec![status_updated("x")]).await;
    assert!(matches!(commit_one(store, turn).await, TurnOutcome::Conflict));
}

async fn a_turn_after_the_end_takes_what_it_has_read_alone(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "a").await;
    start(store, "child").await;
    let mut last = owner.turn(store, "a", vec![completed()]).await;
    let (to, message) = (id("child"), start_message("child of a", "child"));
    last.turn.outbound = vec![OutboundMessage { to, message, when_taken: Some(raise("taken")) }];
    assert!(is_committed(&commit_one(store, last).await));
    let waits = async || inbox(store, "a").await;
    let rows = waits().await;
    assert_eq!(rows.iter().map(|(_, message)| message.as_str()).collect::<Vec<_>>(), ["taken"]);
    let mut turn = owner.turn(store, "a", Vec::new()).await;
    assert!(is_committed(&commit_one(store, turn.clone()).await));
    assert_eq!(waits().await, rows);
    turn.turn.consumed = vec![rows[0].0];
    assert!(is_committed(&commit_one(store, turn).await));
    assert!(waits().await.is_empty());
}

async fn key_values_are_applied_in_order(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "a").await;
    let set = |key: &str, value: &str| {
        KvChange::Set(KvEntry { key: key.to_owned(), value: value.to_owned(), last_updated_at_ms: 7 })
    };
    let clear = |key: &str| KvChange::Clear(key.to_owned());
    let rounds = [
        (vec![set("a", "1"), set("b", "1"), set("a", "2")], vec!["a=2", "b=1"]),
        (vec![clear("a"), set("c", "1"), set("d", "1"), clear("d")], vec!["b=1", "c=1"]),
        (vec![set("e", "1"), KvChange::ClearAll, set("f", "1"), set("Z", "1")], vec!["Z=1", "f=1"]),
        (vec![clear("f"), set("f", "2"), clear("nothing")], vec!["Z=1", "f=2"]),
        (vec![KvChange::ClearAll], vec![]),
    ];
    for (changes, expected) in rounds {
        let mut turn = owner.turn(store, "a", vec![status_updated("x")]).await;
        turn.turn.kv = changes;
        assert!(is_committed(&commit_one(store, turn).await));
        let entries = store.kv(&id("a"), None).await.unwrap();
        let shown: Vec<String> = entries.iter().map(|entry| format!("{}={}", entry.key, entry.value)).collect();
        assert_eq!(shown, expected);
    }
}

async fn a_move_takes_the_inbox_along(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    let home = start(store, "a").await.shard;
    store.send(&id("a"), raise("r"), SendOptions::first_try(10)).await.unwrap();
    let away = ShardId((home.0 + 1) % store.shards());
    let mut turn = owner.turn(store, "a", Vec::new()).await;
    turn.move_to = Some(away);
    turn.turn.state.waits = "moving".to_owned();
    assert!(is_committed(&commit_one(store, turn).await));
    assert_eq!(store.load(&id("a")).await.unwrap().unwrap().shard, away);
    assert!(store.arrivals(&[home], InboxCursor::default(), 10).await.unwrap().receivers.is_empty());
    let there = store.arrivals(&[away], InboxCursor::default(), 10).await.unwrap().receivers;
    assert!(there.iter().all(|wake| wake.instance == id("a")) && !there.is_empty(), "{there:?}");
    assert_eq!(store.send(&id("a"), raise("r2"), SendOptions::first_try(10)).await.unwrap().nudge, Some(away));
}

async fn reading_on_misses_nothing(store: &dyn Store) {
    Owner::of_all(store).await;
    let all: Vec<ShardId> = (0..store.shards()).map(ShardId).collect();
    start(store, "a").await;
    let loaded = store.load(&id("a")).await.unwrap().unwrap();
    let (mut cursor, mut seen) = (loaded.cursor, vec![loaded.inbox[0].seq.unwrap()]);
    let mut swept = store.arrivals(&all, InboxCursor::default(), 10).await.unwrap().next;
    for round in 0..5 {
        for number in 0..3 {
            store
                .send(&id("a"), enqueue(&format!("{round} {number}"), "queue"), SendOptions::first_try(100))
                .await
                .unwrap();
        }
        let (rows, next) = store.inbox(&id("a"), cursor).await.unwrap();
        cursor = next;
        let new: Vec<InboxSeq> = rows.iter().filter_map(|row| row.seq).filter(|seq| !seen.contains(seq)).collect();
        assert_eq!(new.len(), 3);
        seen.extend(new);
        let arrivals = store.arrivals(&all, swept, 1).await.unwrap();
        assert_eq!(arrivals.receivers[0].instance, id("a"));
        swept = arrivals.next;
    }
    assert!(seen.is_sorted());
}

async fn due_and_pending_are_found(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    let all: Vec<ShardId> = (0..store.shards()).map(ShardId).collect();
    let now = store.now();
    for (name, wake, pending) in [("soon", Some(10_u64), 0), ("later", Some(20), 2), ("never", None, 1)] {
        start(store, name).await;
        let mut turn = owner.turn(store, name, vec![status_updated("x")]).await;
        turn.turn.state.wake_at = wake.map(|ms| outlast_core::Millis(now.0 + ms));
        turn.turn.state.pending = pending;
        assert!(is_committed(&commit_one(store, turn).await));
    }
    let at = |ms| outlast_core::Millis(now.0 + ms);
    let names = |due: Vec<outlast_storage::Due>| due.into_iter().map(|due| due.instance).collect::<Vec<_>>();
    assert_eq!(names(store.due(&all, at(15), 10).await.unwrap()), [id("soon")]);
    assert_eq!(names(store.due(&all, at(20), 10).await.unwrap()), [id("soon"), id("later")]);
    assert_eq!(names(store.due(&all, at(20), 1).await.unwrap()), [id("soon")]);
    assert!(store.due(&[], at(20), 10).await.unwrap().is_empty());
    assert_eq!(store.next_due(&all, at(10)).await.unwrap(), Some(at(20)));
    assert_eq!(store.next_due(&all, at(20)).await.unwrap(), None);
    let pending = |wakes: Vec<Wake>| wakes.into_iter().map(|wake| wake.instance).collect::<Vec<_>>();
    assert_eq!(pending(store.pending(&all, None, 10).await.unwrap()), [id("later"), id("never")]);
    assert_eq!(pending(store.pending(&all, Some(&id("later")), 10).await.unwrap()), [id("never")]);
    let end = owner.turn(store, "soon", vec![EventKind::OrchestrationCompleted { output: String::new() }]).await;
    assert!(is_committed(&commit_one(store, end).await));
    assert_eq!(names(store.due(&all, at(20), 10).await.unwrap()), [id("later")]);
}
