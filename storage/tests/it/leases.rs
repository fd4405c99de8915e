//! Nodes, shards and sessions as all stores share them out.

use std::time::Duration;

use outlast_core::{InstanceId, Millis, ShardId, WorkerId};
use outlast_storage::{SessionClaim, Shortage, Store};

use crate::fixture::{join, on_every_store};

on_every_store!(
    nodes_see_each_other,
    a_leaving_node_frees_all,
    sessions_stay_with_a_worker_that_lives,
    shortages_go_with_their_node
);

async fn nodes_see_each_other(store: &dyn Store) {
    let first = join(store, "first").await;
    let second = join(store, "second").await;
    store.acquire(&first, &[ShardId(0), ShardId(1)]).await.unwrap();
    store.acquire(&second, &[ShardId(1), ShardId(2)]).await.unwrap();
    let view = store.renew(&second).await.unwrap();
    assert_eq!(view.nodes.iter().map(|node| node.id.clone()).collect::<Vec<_>>(), [first.clone(), second.clone()]);
    assert_eq!(view.nodes[0].handlers, [("orchestration".to_owned(), "1.0.0".to_owned())]);
    let worker = view.nodes[0].worker.clone().unwrap();
    assert_eq!(worker.activities, ["Echo", "Say"]);
    assert!(worker.filter.matches(Some("gpu")) && worker.filter.matches(None) && !worker.filter.matches(Some("cpu")));
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
    store.release_sessions(&first, Some("s")).await.unwrap();
    assert_eq!(claim(&first, idle).await.unwrap(), SessionClaim::Other(second.clone()));
    store.release_sessions(&second, None).await.unwrap();
    assert_eq!(claim(&first, idle).await.unwrap(), SessionClaim::Mine);
}

async fn shortages_go_with_their_node(store: &dyn Store) {
    let first = join(store, "first").await;
    let second = join(store, "second").await;
    let shortage = |reason: &str, waiting, since| Shortage {
        reason: reason.to_owned(),
        instance: InstanceId::new("a"),
        orchestration: "orchestration".to_owned(),
        waiting,
        since: Millis(since),
    };
    store.report_shortages(&first, vec![shortage("x", 1, 70), shortage("y", 1, 70)]).await.unwrap();
    store.report_shortages(&first, vec![shortage("x", 2, 50)]).await.unwrap();
    store.report_shortages(&second, vec![shortage("x", 3, 60)]).await.unwrap();
    let problems = store.problems().await.unwrap();
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    assert_eq!((problem.waits.as_str(), problem.waiting, problem.since), ("x", 5, Millis(50)));
    store.leave(&first).await.unwrap();
    assert_eq!(store.problems().await.unwrap()[0].waiting, 3);
    store.report_shortages(&second, Vec::new()).await.unwrap();
    assert!(store.problems().await.unwrap().is_empty());
}
