//! Bulk deletion and pruning: every call gets on, whatever lies in its way, and touches nothing that it was not asked for.

use outlast_core::{EventId, EventKind, ExecutionId, InstanceStatus, MessageKind, OutboundMessage, ParentLink, Token};
use outlast_storage::{InstanceFilter, PruneOptions, Store};

use crate::fixture::{
    Owner, commit_one, completed, event, id, is_committed, on_every_store, start, start_message, state, status_updated,
};

on_every_store!(
    bulk_deletion_gets_past_trees_that_run,
    bulk_pruning_gets_past_what_is_pruned,
    a_moment_is_for_what_has_ended_and_the_end_of_time_is_one,
    only_named_instances_are_touched,
);

async fn end(store: &dyn Store, owner: &Owner, instance: &str) {
    let turn = owner.turn(store, instance, vec![completed()]).await;
    assert!(is_committed(&commit_one(store, turn).await));
}

/// Starts a child and ends.
async fn end_with_child(store: &dyn Store, owner: &Owner, parent: &str, child: &str) {
    let mut turn = owner.turn(store, parent, vec![completed()]).await;
    let mut message = start_message(child, "orchestration");
    if let MessageKind::Start(start) = &mut message.kind {
        let (instance, execution, event, token) = (id(parent), ExecutionId(1), EventId(1), Token(1));
        start.parent = Some(ParentLink { instance, execution, event, token });
    }
    turn.turn.outbound = vec![OutboundMessage { to: id(child), message, when_taken: None }];
    assert!(is_committed(&commit_one(store, turn).await));
}

/// An instance in its third execution.
async fn continued(store: &dyn Store, owner: &Owner, instance: &str) {
    start(store, instance).await;
    for number in 1..=2_u64 {
        let next = EventKind::OrchestrationContinuedAsNew { input: String::new() };
        let mut turn = owner.turn(store, instance, vec![next]).await;
        turn.turn.state.status = InstanceStatus::Running;
        turn.turn.state.completed_at = None;
        turn.turn.state.execution = ExecutionId(number + 1);
        turn.turn.state.last_event_id = EventId(1);
        let begun = event(EventId(1), status_updated("begun"), store.now());
        turn.turn.events.push((ExecutionId(number + 1), begun));
        turn.turn.expected.execution = ExecutionId(number);
        assert!(is_committed(&commit_one(store, turn).await));
    }
}

fn at_most(limit: u32) -> InstanceFilter {
    InstanceFilter { limit: Some(limit), ..InstanceFilter::default() }
}

fn old() -> PruneOptions {
    PruneOptions { keep_last: Some(1), completed_before: None }
}

async fn bulk_deletion_gets_past_trees_that_run(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    // Those that ended first cannot go: a child of one runs, and a grandchild of another.
    for number in 0..4 {
        let (root, child) = (format!("root{number}"), format!("child{number}"));
        start(store, &root).await;
        end_with_child(store, &owner, &root, &child).await;
        if number % 2 == 0 {
            end_with_child(store, &owner, &child, &format!("grandchild{number}")).await;
        }
    }
    for number in 0..5 {
        start(store, &format!("free{number}")).await;
        end(store, &owner, &format!("free{number}")).await;
    }
    for expected in [2, 2, 1, 0] {
        assert_eq!(store.delete_bulk(at_most(2)).await.unwrap().instances_deleted, expected);
    }
    assert_eq!(state(store, "root0").await.status, InstanceStatus::Completed);
    for number in 0..4 {
        end(store, &owner, &format!("{}child{number}", if number % 2 == 0 { "grand" } else { "" })).await;
    }
    assert_eq!(store.delete_bulk(InstanceFilter::default()).await.unwrap().instances_deleted, 10);
    assert_eq!(store.metrics().await.unwrap().0.total_instances, 0);
}

async fn bulk_pruning_gets_past_what_is_pruned(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    for number in 0..5 {
        continued(store, &owner, &format!("i{number}")).await;
    }
    for expected in [2, 2, 1, 0] {
        let pruned = store.prune_bulk(at_most(2), old()).await.unwrap();
        assert_eq!((pruned.instances_processed, pruned.executions_deleted), (expected, expected * 2));
    }
    assert_eq!(store.executions(&id("i4")).await.unwrap().len(), 1);
}

async fn a_moment_is_for_what_has_ended_and_the_end_of_time_is_one(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    for name in ["runs", "ended"] {
        continued(store, &owner, name).await;
    }
    end(store, &owner, "ended").await;
    let before = |moment| InstanceFilter { completed_before: Some(moment), ..InstanceFilter::default() };
    assert_eq!(store.prune_bulk(before(1), old()).await.unwrap().executions_deleted, 0);
    assert_eq!(store.delete_bulk(before(1)).await.unwrap().instances_deleted, 0);
    // Executions by the moment of their own end.
    let ended_before = |moment| PruneOptions { keep_last: None, completed_before: Some(moment) };
    assert_eq!(store.prune_bulk(before(u64::MAX), ended_before(1)).await.unwrap().executions_deleted, 0);
    assert_eq!(store.prune(&id("ended"), ended_before(1)).await.unwrap().executions_deleted, 0);
    assert_eq!(store.prune_bulk(before(u64::MAX), ended_before(u64::MAX)).await.unwrap().executions_deleted, 2);
    assert_eq!(store.executions(&id("runs")).await.unwrap().len(), 3, "what runs has not ended before anything");
    assert_eq!(store.prune(&id("runs"), ended_before(u64::MAX)).await.unwrap().executions_deleted, 2);
    assert_eq!(store.delete_bulk(before(u64::MAX)).await.unwrap().instances_deleted, 1);
    assert_eq!(state(store, "runs").await.status, InstanceStatus::Running);
}

async fn only_named_instances_are_touched(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    for name in ["a", "b", "c"] {
        continued(store, &owner, name).await;
    }
    let ids = ["c", "nobody", "a", "c"].map(str::to_owned).to_vec();
    let named = |limit| InstanceFilter { instance_ids: Some(ids.clone()), limit, ..InstanceFilter::default() };
    assert_eq!(store.prune_bulk(named(Some(0)), old()).await.unwrap().instances_processed, 0);
    for expected in [1, 1, 0] {
        assert_eq!(store.prune_bulk(named(Some(1)), old()).await.unwrap().instances_processed, expected);
    }
    for name in ["a", "b"] {
        end(store, &owner, name).await;
    }
    assert_eq!(store.delete_bulk(named(None)).await.unwrap().instances_deleted, 1);
    assert_eq!(store.executions(&id("b")).await.unwrap().len(), 3);
}
