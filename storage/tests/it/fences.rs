//! Guarantee 2: only the holder of a shard's epoch writes.

use outlast_core::{Epoch, ShardId};
use outlast_storage::{Store, TurnOutcome};

use crate::fixture::{Owner, commit_one, history, is_committed, join, on_every_store, start, status_updated};

on_every_store!(an_older_epoch_writes_nothing, a_released_shard_is_written_by_nobody_but_its_next_owner);

async fn an_older_epoch_writes_nothing(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    start(store, "a").await;
    start(store, "b").await;
    let mut stale = owner.turn(store, "a", vec![status_updated("x")]).await;
    stale.epoch = Epoch(stale.epoch.0 - 1);
    let valid = owner.turn(store, "b", vec![status_updated("x")]).await;
    let outcomes = store.commit(vec![stale, valid]).await.unwrap().outcomes;
    assert!(matches!(outcomes[0], TurnOutcome::Fenced) && is_committed(&outcomes[1]), "{outcomes:?}");
    assert!(history(store, "a").await.is_empty());
}

async fn a_released_shard_is_written_by_nobody_but_its_next_owner(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    let shard = start(store, "a").await.shard;
    let turn = owner.turn(store, "a", vec![status_updated("x")]).await;
    store.release(&owner.node, &[shard]).await.unwrap();
    let other = join(store, "other").await;
    let all: Vec<ShardId> = (0..store.shards()).map(ShardId).collect();
    // Only what is free can be taken.
    let taken = store.acquire(&other, &all).await.unwrap();
    assert_eq!(taken.iter().map(|held| held.shard).collect::<Vec<_>>(), [shard]);
    assert!(taken[0].epoch > owner.epoch(shard));
    assert!(matches!(commit_one(store, turn.clone()).await, TurnOutcome::Fenced));
    let mut mine = turn;
    mine.epoch = taken[0].epoch;
    assert!(is_committed(&commit_one(store, mine).await));
}
