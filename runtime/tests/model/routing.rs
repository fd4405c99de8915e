//! Tags, sessions and two runtimes on one provider.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use outlast::{
    ActivityContext, ActivityRegistryBuilder, OrchestrationContext, OrchestrationRegistry, RuntimeOptions, TagFilter,
};

use crate::model::world::{World, activities, options, orchestration};
use crate::place::Place;

fn who() -> ActivityRegistryBuilder {
    activities().register("Who", |ctx: ActivityContext, _: String| async move {
        let name = ctx.worker_id().split('-').next().unwrap_or_default().to_owned();
        Ok(format!("{name}:{}", ctx.tag().unwrap_or("untagged")))
    })
}

fn named(name: &str, filter: TagFilter) -> RuntimeOptions {
    RuntimeOptions { worker_node_id: Some(name.to_owned()), worker_tag_filter: filter, ..options() }
}

#[tokio::test]
async fn tagged_work_runs_only_in_its_pool() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let mut seen = BTreeSet::new();
        for _ in 0..20 {
            let (gpu, plain) =
                ctx.join2(ctx.schedule_activity("Who", "").with_tag("gpu"), ctx.schedule_activity("Who", "")).await;
            seen.insert(gpu?);
            seen.insert(plain?);
        }
        Ok(seen.into_iter().collect::<Vec<_>>().join(" "))
    };
    let place = Place::default();
    let provider = place.open().await;
    let gpu = named("gpus", TagFilter::tags(["gpu"]));
    let _pool = World::on(provider.clone(), who(), OrchestrationRegistry::builder(), gpu).await;
    let world = World::on(provider, who(), orchestration("Route", code), named("cpus", TagFilter::DefaultOnly)).await;
    assert_eq!(world.run("Route", "").await.unwrap(), "cpus:untagged gpus:gpu");
}

#[tokio::test]
async fn a_session_stays_with_one_worker() {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let registry = |seen: &Arc<Mutex<BTreeSet<(String, String)>>>| {
        let seen = seen.clone();
        activities().register("Turn", move |ctx: ActivityContext, _: String| {
            let seen = seen.clone();
            async move {
                let session = ctx.session_id().unwrap_or_default().to_owned();
                seen.lock().unwrap().insert((session, ctx.worker_id().to_owned()));
                Ok(String::new())
            }
        })
    };
    let code = |ctx: OrchestrationContext, _: String| async move {
        let turns = (0..60).map(|n| ctx.schedule_activity_on_session("Turn", "", format!("s{}", n % 6))).collect();
        let results = ctx.join(turns).await;
        Ok(results.into_iter().filter(Result::is_ok).count().to_string())
    };
    let place = Place::default();
    let provider = place.open().await;
    let _other = World::on(provider.clone(), registry(&seen), OrchestrationRegistry::builder(), options()).await;
    let world = World::on(provider, registry(&seen), orchestration("Chat", code), options()).await;
    assert_eq!(world.run("Chat", "").await.unwrap(), "60");
    assert_eq!(seen.lock().unwrap().len(), 6, "each session was seen with one worker only: {seen:?}");
}

#[tokio::test]
async fn instances_move_to_the_runtime_that_has_their_code() {
    let code = |ctx: OrchestrationContext, input: String| async move { ctx.schedule_activity("Echo", input).await };
    let place = Place::default();
    let provider = place.open().await;
    // The default back-off: long enough for the shards to be shared out among the two.
    let patient = RuntimeOptions { unregistered_backoff: RuntimeOptions::default().unregistered_backoff, ..options() };
    let one = World::on(provider.clone(), activities(), orchestration("One", code), patient.clone()).await;
    let two = World::on(provider, activities(), orchestration("Two", code), patient).await;
    for n in 0..20 {
        for name in ["One", "Two"] {
            one.client.start_orchestration(format!("{name}-{n}"), name, n.to_string()).await.unwrap();
        }
    }
    for n in 0..20 {
        for name in ["One", "Two"] {
            assert_eq!(two.outcome(&format!("{name}-{n}")).await.unwrap(), n.to_string());
        }
    }
}

#[tokio::test]
async fn the_other_runtime_goes_on_when_one_stops() {
    let code = |ctx: OrchestrationContext, input: String| async move {
        ctx.schedule_wait("go").await;
        ctx.schedule_activity("Echo", input).await
    };
    let place = Place::default();
    let provider = place.open().await;
    let one = World::on(provider.clone(), activities(), orchestration("Job", code), options()).await;
    let two = World::on(provider, activities(), orchestration("Job", code), options()).await;
    for n in 0..20 {
        one.client.start_orchestration(n.to_string(), "Job", n.to_string()).await.unwrap();
    }
    for n in 0..20 {
        two.events(&n.to_string(), 2).await;
    }
    one.runtime.shutdown(None).await;
    for n in 0..20 {
        two.client.raise_event(n.to_string(), "go", "").await.unwrap();
    }
    for n in 0..20 {
        assert_eq!(two.outcome(&n.to_string()).await.unwrap(), n.to_string());
    }
}
