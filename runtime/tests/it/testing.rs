//! The test kit.

use std::time::{Duration, Instant};

use outlast::testing::{ReplayError, TestRuntime, replay, run_once};
use outlast::{
    ActivityContext, Either2, ErrorDetails, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus,
    ReplayDifference, RetryPolicy,
};

use crate::world::{activities, orchestration};

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn thirty_days_pass_in_moments() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let begun = ctx.utc_now().await?;
        for _ in 0..30 {
            ctx.schedule_timer(DAY).await;
            ctx.schedule_activity("Echo", "daily").await?;
        }
        let days = ctx.utc_now().await?.duration_since(begun).map_err(|error| error.to_string())?.as_secs() / 86_400;
        Ok(days.to_string())
    };
    let world = TestRuntime::start(activities().build(), orchestration("Month", code).build()).await.unwrap();
    let real = Instant::now();
    world.client().start_orchestration("i", "Month", "").await.unwrap();
    let status = world.run_to_end("i").await.unwrap();
    assert!(matches!(&status, OrchestrationStatus::Completed { output, .. } if output == "30"), "{status:?}");
    assert!(world.elapsed() >= 30 * DAY);
    assert!(real.elapsed() < DAY, "no real day has passed");
    world.shutdown().await;
}

#[tokio::test]
async fn time_stands_still_while_a_test_decides() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        match ctx.select2(ctx.schedule_timer(DAY), ctx.schedule_wait("approve")).await {
            Either2::First(()) => Ok("too late".to_owned()),
            Either2::Second(who) => Ok(who),
        }
    };
    let world = TestRuntime::start(activities().build(), orchestration("Approval", code).build()).await.unwrap();
    let client = world.client();
    for id in ["in-time", "late"] {
        client.start_orchestration(id, "Approval", "").await.unwrap();
    }
    world.advance(DAY / 2).await.unwrap();
    client.raise_event("in-time", "approve", "Ada").await.unwrap();
    for (id, expected) in [("in-time", "Ada"), ("late", "too late")] {
        let status = world.run_to_end(id).await.unwrap();
        assert!(
            matches!(&status, OrchestrationStatus::Completed { output, .. } if output == expected),
            "{id}: {status:?}"
        );
    }
}

#[tokio::test]
async fn an_exported_history_is_replayed_against_todays_code() {
    let code = |ctx: OrchestrationContext, _: String| async move { ctx.schedule_activity("Echo", "a").await };
    let registry = orchestration("Job", code).build();
    let world = TestRuntime::start(activities().build(), registry.clone()).await.unwrap();
    world.client().start_orchestration("i", "Job", "").await.unwrap();
    world.run_to_end("i").await.unwrap();
    let json = serde_json::to_string(&world.client().read_execution_history("i", 1).await.unwrap()).unwrap();
    replay(&registry, &json).unwrap();
    let changed = OrchestrationRegistry::builder()
        .register("Job", |ctx: OrchestrationContext, _: String| async move { ctx.schedule_activity("Echo", "b").await })
        .build();
    let Err(ReplayError::Differs(ReplayDifference::At { event_id, expected, actual })) = replay(&changed, &json) else {
        panic!("a changed input must be found");
    };
    assert_eq!(event_id, 2);
    assert!(expected.contains("\"a\"") && actual.contains("\"b\""), "{expected} / {actual}");
    assert!(matches!(replay(&registry, "nonsense"), Err(ReplayError::Unreadable(_))));
}

#[tokio::test]
async fn time_goes_on_past_an_activity_that_does_not_end() {
    let stuck = activities().register("Stuck", |ctx: ActivityContext, _: String| async move {
        ctx.cancelled().await;
        Err("cancelled".to_owned())
    });
    let code = |ctx: OrchestrationContext, _: String| async move {
        let policy = RetryPolicy::new(2).with_timeout(Duration::from_secs(5));
        let timed = ctx.schedule_activity_with_retry("Stuck", "", policy).await;
        let nobody = ctx.schedule_activity("Echo", "").with_tag("gpu");
        match ctx.select2(nobody, ctx.schedule_timer(DAY)).await {
            Either2::First(_) => Err("nobody has a gpu".to_owned()),
            Either2::Second(()) => Ok(timed.unwrap_err()),
        }
    };
    let world = TestRuntime::start(stuck.build(), orchestration("Job", code).build()).await.unwrap();
    world.client().start_orchestration("i", "Job", "").await.unwrap();
    let status = world.run_to_end("i").await.unwrap();
    let expected = "timeout: activity timed out";
    assert!(matches!(&status, OrchestrationStatus::Completed { output, .. } if output == expected), "{status:?}");
}

#[tokio::test]
async fn a_name_that_nobody_has_registered_is_named() {
    let code = |ctx: OrchestrationContext, _: String| async move { ctx.schedule_activity("Missing", "").await };
    let outcome = run_once(activities().build(), orchestration("Job", code).build(), ("Job", "")).await;
    let Err(ErrorDetails::Poison { message_type, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(message_type, "activity Missing");
}

#[tokio::test]
async fn time_stands_while_an_activity_runs() {
    let slow = activities().register("Slow", |_: ActivityContext, input: String| async move {
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        Ok(input)
    });
    let code = |ctx: OrchestrationContext, _: String| async move {
        let begun = ctx.utc_now().await?;
        let policy = RetryPolicy::new(1).with_timeout(Duration::from_secs(3_600));
        let result = ctx.schedule_activity_with_retry("Slow", "in time", policy).await?;
        let took = ctx.utc_now().await?.duration_since(begun).map_err(|error| error.to_string())?;
        Ok(format!("{result} after {}", took.as_secs()))
    };
    let output = run_once(slow.build(), orchestration("Job", code).build(), ("Job", "")).await;
    assert_eq!(output.unwrap(), "in time after 0");
}

#[tokio::test]
async fn patience_with_activities_is_an_option() {
    let stuck = activities().register("Stuck", |ctx: ActivityContext, _: String| async move {
        ctx.cancelled().await;
        Err("cancelled".to_owned())
    });
    let code = |ctx: OrchestrationContext, _: String| async move {
        let policy = RetryPolicy::new(1).with_timeout(DAY);
        ctx.schedule_activity_with_retry("Stuck", "", policy).await
    };
    let world = TestRuntime::start(stuck.build(), orchestration("Job", code).build()).await.unwrap();
    let world = world.with_patience(Duration::from_millis(200));
    world.client().start_orchestration("i", "Job", "").await.unwrap();
    let real = Instant::now();
    let status = world.run_to_end("i").await.unwrap();
    assert!(matches!(&status, OrchestrationStatus::Failed { .. }), "{status:?}");
    assert!(world.elapsed() >= DAY && real.elapsed() < Duration::from_secs(9), "{:?}", real.elapsed());
}

/// Meets the executor's budget for polls wherever that counts.
async fn thrifty(ctx: OrchestrationContext, _: String) -> Result<String, String> {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let mut said = String::new();
    for n in 0..300 {
        sender.send(n).map_err(|error| error.to_string())?;
        receiver.recv().await.ok_or("closed")?;
    }
    for n in 0..200 {
        let timer = ctx.schedule_timer(DAY);
        tokio::select! {
            biased;
            number = async { n } => said = ctx.schedule_activity("Echo", number.to_string()).await?,
            () = timer => return Err("the timer won".to_owned()),
        }
    }
    Ok(said)
}

#[tokio::test]
async fn replay_polls_as_the_runtime_does() {
    let registry = orchestration("Job", thrifty).build();
    let world = TestRuntime::start(activities().build(), registry.clone()).await.unwrap();
    world.client().start_orchestration("i", "Job", "").await.unwrap();
    let status = world.run_to_end("i").await.unwrap();
    assert!(matches!(&status, OrchestrationStatus::Completed { output, .. } if output == "199"), "{status:?}");
    let json = serde_json::to_string(&world.client().read_execution_history("i", 1).await.unwrap()).unwrap();
    // In a task, whose budget is there, and outside of any.
    replay(&registry, &json).unwrap();
    tokio::spawn({
        let (registry, json) = (registry.clone(), json.clone());
        async move { replay(&registry, &json).unwrap() }
    })
    .await
    .unwrap();
    std::thread::spawn(move || replay(&registry, &json).unwrap()).join().unwrap();
}
