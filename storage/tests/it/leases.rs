//! Nodes, shards and sessions as all stores share them out.

use std::time::Duration;

use outlast_core::{ShardId, WorkerId};
use outlast_storage::{SessionClaim, Store};

use crate::fixture::{join, on_every_store};

on_every_store!(nodes_see_each_other, a_leaving_node_frees_all, sessions_stay_with_a_worker_that_lives);

async fn nodes_see_each_other(store: &dyn Store) {
    let first = join(store, "first").await;
    let second = join(store, "second").await;
    store.acquire(&first, &[ShardId(0), ShardId(1)]).await.unwrap();
    store.acquire(&second, &[ShardId(1), ShardId(2)]).await.unwrap();
    let view = store.renew(&second).await.unwrap();
    assert_eq!(view.nodes.iter().map(|node| node.id.clone()).collect::<Vec<_>>(), [first.clone(), second.clone()]);
    assert_eq!(view.nodes[0].handlers, [("orchestration".to_owned(), "1.0.0".to_owned())]);
    assert_eq!(view.owners[..4], [Some(first.clone()), Some(first), Some(second), None]);
    assert_eq!(view.held.iter().map(|held| held.shard).collect::<Vec<_>>(), [ShardId(2)]);
}

async fn a_leaving_node_frees_all(store: &dyn Store) {
    let first = join(store, "first").await;
    let second = join(store, "second").await;
    store.acquire(&first, &[ShardId(0), ShardId(1)]).await.unwrap();
    store.leave(&first).await.unwrap();
    let view = store.renew(&second).await.unwrap();
    assert_eq!(view.nodes.len(), 1);
    assert!(view.owners.iter().all(Option::is_none));
    let taken = store.acquire(&second, &[ShardId(0), ShardId(1)]).await.unwrap();
    assert_eq!(taken.len(), 2);
}

async fn sessions_stay_with_a_worker_that_lives(store: &dyn Store) {
    let (first, second) = (WorkerId::new("first"), WorkerId::new("second"));
    join(store, "first").await;
    join(store, "second").await;
    let idle = Duration::from_secs(60);
    let claim = |worker, idle| store.claim_session("s", worker, idle);
    assert_eq!(claim(&first, idle).await.unwrap(), SessionClaim::Mine);
    assert_eq!(claim(&second, idle).await.unwrap(), SessionClaim::Other(first.clone()));
    assert_eq!(claim(&first, idle).await.unwrap(), SessionClaim::Mine);
    let owners = store.session_owners(&["none".to_owned(), "s".to_owned()]).await.unwrap();
    assert_eq!(owners, [None, Some(first.clone())]);
    // Unused for longer than the asking worker's idle time.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(claim(&second, Duration::from_millis(5)).await.unwrap(), SessionClaim::Mine);
    store.release_session("s", &first).await.unwrap();
    assert_eq!(claim(&first, idle).await.unwrap(), SessionClaim::Other(second.clone()));
    store.release_sessions(&second).await.unwrap();
    assert_eq!(claim(&first, idle).await.unwrap(), SessionClaim::Mine);
}
