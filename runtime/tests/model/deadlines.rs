//! Deadlines of activities, heartbeats, and payloads that are large.

use std::time::Duration;

use outlast::{ActivityContext, ActivityTimeouts, ClientError, OrchestrationContext, RetryPolicy};

use crate::model::world::{World, activities, orchestration};

const SHORT: Duration = Duration::from_millis(80);

/// Works until it is told that nobody waits.
async fn until_cancelled(ctx: ActivityContext, _: String) -> Result<String, String> {
    ctx.cancelled().await;
    Ok("told".to_owned())
}

#[tokio::test]
async fn a_missed_deadline_is_an_error_that_says_which() {
    let beats = |ctx: ActivityContext, _: String| async move {
        for beat in 0..5 {
            ctx.heartbeat(beat.to_string());
            tokio::time::sleep(SHORT / 4).await;
        }
        std::future::pending().await
    };
    let registry = activities().register("Stuck", until_cancelled).register("Beats", beats);
    let registry = registry.register("Default", until_cancelled);
    let registry = registry.set_timeouts("Default", ActivityTimeouts::new().start_to_close(SHORT));
    let code = |ctx: OrchestrationContext, _: String| async move {
        let late = [
            ctx.schedule_activity("Stuck", "").with_start_to_close(SHORT).await,
            ctx.schedule_activity("Beats", "").with_heartbeat_timeout(SHORT).await,
            ctx.schedule_activity("Echo", "").with_tag("nobody").with_schedule_to_start(SHORT).await,
            ctx.schedule_activity("Default", "").await,
        ];
        let in_time = ActivityTimeouts::new().schedule_to_start(SHORT * 100).start_to_close(SHORT * 100);
        ctx.schedule_activity("Echo", "in time").with_timeouts(in_time).await?;
        Ok(late.map(|result| result.expect_err("it is late")).join("\n"))
    };
    let world = World::start(registry, orchestration("Late", code)).await;
    let text = world.run("Late", "").await.unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (line, what) in lines.iter().zip(["start_to_close", "heartbeat", "schedule_to_start", "start_to_close"]) {
        assert!(line.starts_with("timeout: ") && line.contains(what), "{line}");
    }
    assert_eq!(lines.len(), 4);
}

#[tokio::test]
async fn the_next_attempt_reads_the_last_heartbeat() {
    let resumes = |ctx: ActivityContext, _: String| async move {
        let from = ctx.last_heartbeat().map_or(0, |text| text.parse::<u32>().unwrap_or(0));
        ctx.heartbeat((from + 10).to_string());
        if from < 20 { Err(format!("failed at {from}")) } else { Ok(from.to_string()) }
    };
    let code = |ctx: OrchestrationContext, _: String| async move {
        ctx.schedule_activity_with_retry("Resumes", "", RetryPolicy::new(5)).await
    };
    let world = World::start(activities().register("Resumes", resumes), orchestration("Job", code)).await;
    assert_eq!(world.run("Job", "").await.unwrap(), "20");
}

#[tokio::test]
async fn large_payloads_travel_and_larger_ones_are_refused() {
    let code = |ctx: OrchestrationContext, input: String| async move {
        let echoed = ctx.schedule_activity("Echo", input).await?;
        let event = ctx.schedule_wait("more").await;
        Ok(format!("{}{}", &echoed, event.len()))
    };
    let world = World::start(activities(), orchestration("Large", code)).await;
    let large = "x".repeat(3 << 20);
    world.client.start_orchestration("i", "Large", large.clone()).await.unwrap();
    world.events("i", 3).await;
    world.client.raise_event("i", "more", large.clone()).await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), format!("{large}{}", large.len()));
    let too_large = "x".repeat((8 << 20) + 1);
    let refused = world.client.start_orchestration("j", "Large", too_large).await;
    assert!(matches!(&refused, Err(ClientError::InvalidInput { message }) if message.contains("payload_bytes_max")));
}
