//! Large numbers on one machine.

use outlast::{Limits, OrchestrationContext, RuntimeOptions};

use crate::world::{World, activities, options, orchestration};

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_activities_are_joined() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let all = futures::future::join_all((0..10_000).map(|n| ctx.schedule_activity("Echo", n.to_string()))).await;
        Ok(all.into_iter().filter(Result::is_ok).count().to_string())
    };
    let world = World::start(activities(), orchestration("Fan", code)).await;
    assert_eq!(world.run("Fan", "").await.unwrap(), "10000");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_instances_than_fit_in_memory_all_end() {
    let code = |ctx: OrchestrationContext, input: String| async move {
        let word = ctx.schedule_wait("go").await;
        ctx.schedule_activity("Echo", format!("{input}{word}")).await
    };
    let few = RuntimeOptions { limits: Limits { warm_instances_max: 10, ..Limits::default() }, ..options() };
    let world = World::start_with(activities(), orchestration("Job", code), few).await;
    for n in 0..300 {
        world.client.start_orchestration(n.to_string(), "Job", n.to_string()).await.unwrap();
    }
    for n in 0..300 {
        world.events(&n.to_string(), 2).await;
    }
    let bounded = async {
        while world.runtime.metrics_snapshot().warm_instances > 10 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(crate::world::SOON, bounded).await.expect("the bound on warm instances is kept");
    for n in 0..300 {
        world.client.raise_event(n.to_string(), "go", "!").await.unwrap();
    }
    for n in 0..300 {
        assert_eq!(world.outcome(&n.to_string()).await.unwrap(), format!("{n}!"));
    }
}
