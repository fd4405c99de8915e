//! Many tags and many sessions on one cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus,
    RuntimeOptions, TagFilter,
};

use crate::node::{Cluster, PATIENCE};

const TAGS: usize = 50;
const SESSIONS: usize = 10_000;
/// Sessions that one instance opens.
const PER_INSTANCE: usize = 500;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_tags_and_ten_thousand_sessions_work() {
    let cluster = Cluster::shared();
    let seen: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
    let held = Arc::clone(&seen);
    let who = |ctx: ActivityContext, _: String| async move { Ok(format!("{:?} {}", ctx.tag(), ctx.worker_id())) };
    let once = move |ctx: ActivityContext, _: String| {
        let session = ctx.session_id().unwrap_or_default().to_owned();
        let mut held = held.lock().unwrap();
        let worker = held.entry(session).or_insert_with(|| ctx.worker_id().to_owned()).clone();
        let same = worker == ctx.worker_id();
        async move { if same { Ok(String::new()) } else { Err("the session has moved".to_owned()) } }
    };
    let activities = ActivityRegistry::builder().register("Who", who).register("Once", once).build();
    let tags = |ctx: OrchestrationContext, _: String| async move {
        let calls = (0..TAGS).map(|tag| ctx.schedule_activity("Who", "").with_tag(format!("tag {tag}.*"))).collect();
        Ok(ctx.join(calls).await.into_iter().collect::<Result<Vec<_>, _>>()?.join("\n"))
    };
    let sessions = |ctx: OrchestrationContext, first: String| async move {
        let first: usize = first.parse().map_err(|_| "a number")?;
        for _ in 0..2 {
            let session = |n| format!("session {n}");
            let calls = (first..first + PER_INSTANCE).map(|n| ctx.schedule_activity_on_session("Once", "", session(n)));
            ctx.join(calls.collect()).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        }
        Ok(String::new())
    };
    let orchestrations = OrchestrationRegistry::builder().register("Tags", tags).register("Sessions", sessions).build();
    let mut workers = Vec::new();
    for _ in 0..2 {
        let options = RuntimeOptions {
            worker_concurrency: 64,
            worker_tag_filter: TagFilter::Any,
            max_sessions_per_runtime: SESSIONS,
            ..RuntimeOptions::default()
        };
        let provider = cluster.provider().await;
        workers.push(Runtime::start_with_options(provider, activities.clone(), orchestrations.clone(), options).await);
    }
    let client = cluster.client().await;
    client.start_orchestration("tags", "Tags", "").await.unwrap();
    let starts: Vec<usize> = (0..SESSIONS).step_by(PER_INSTANCE).collect();
    for first in &starts {
        client.start_orchestration(format!("s{first}"), "Sessions", first.to_string()).await.unwrap();
    }
    let output = async |id: String| match client.wait_for_orchestration(&id, PATIENCE * 2).await.unwrap() {
        OrchestrationStatus::Completed { output, .. } => output,
        other => panic!("{id}: {other:?}"),
    };
    let ran = output("tags".to_owned()).await;
    assert_eq!(ran.lines().count(), TAGS);
    assert!((0..TAGS).all(|tag| ran.contains(&format!("Some(\"tag {tag}.*\")"))));
    for first in &starts {
        output(format!("s{first}")).await;
    }
    assert_eq!(seen.lock().unwrap().len(), SESSIONS);
    for worker in workers {
        worker.shutdown(Some(5_000)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_starts_than_a_node_has_room_for_all_end() {
    let cluster = Cluster::shared();
    let mut options = RuntimeOptions { worker_concurrency: 0, ..RuntimeOptions::default() };
    options.limits.warm_instances_max = 4;
    let nap = |ctx: OrchestrationContext, id: String| async move {
        ctx.schedule_timer(Duration::from_millis(20)).await;
        Ok(id)
    };
    let orchestrations = OrchestrationRegistry::builder().register("Nap", nap).build();
    let activities = ActivityRegistry::builder().build();
    let node = Runtime::start_with_options(cluster.provider().await, activities, orchestrations, options).await;
    let client = cluster.client().await;
    let ids: Vec<String> = (0..500).map(|number| format!("n{number}")).collect();
    let starts = ids.iter().map(|id| client.start_orchestration(id, "Nap", id.clone()));
    assert!(futures::future::join_all(starts).await.into_iter().all(|started| started.is_ok()));
    for id in &ids {
        let status = client.wait_for_orchestration(id, PATIENCE).await.unwrap();
        assert!(matches!(&status, OrchestrationStatus::Completed { output, .. } if output == id), "{id}: {status:?}");
    }
    node.shutdown(None).await;
}
