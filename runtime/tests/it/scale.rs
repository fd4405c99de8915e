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

/// Bytes of memory that this process has now.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_starts_waits_in_the_store_and_not_in_memory() {
    const STARTS: usize = 2_000;
    const INPUT: usize = 100_000;
    // Turns that take their time, so that starts come faster than they are run.
    let code = |_: OrchestrationContext, input: String| async move {
        std::thread::sleep(std::time::Duration::from_millis(2));
        Ok(input.len().to_string())
    };
    let few = RuntimeOptions { limits: Limits { warm_instances_max: 8, ..Limits::default() }, ..options() };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let provider = outlast::providers::sqlite::SqliteProvider::new(path.to_str().unwrap(), None).await.unwrap();
    let world = World::on(std::sync::Arc::new(provider), activities(), orchestration("Slow", code), few).await;
    let input = "x".repeat(INPUT);
    let (before, mut most) = (resident(), 0);
    for first in (0..STARTS).step_by(50) {
        let start = |n: usize| world.client.start_orchestration(format!("i{n}"), "Slow", input.clone());
        let started = futures::future::join_all((first..first + 50).map(start)).await;
        assert!(started.into_iter().all(|started| started.is_ok()));
        most = most.max(resident());
    }
    // All of them would be 200 MB.
    assert!(most.saturating_sub(before) < 100_000_000, "{before} bytes became {most}");
    for n in 0..STARTS {
        assert_eq!(world.outcome(&format!("i{n}")).await.unwrap(), INPUT.to_string());
    }
}
