//! Activities: errors, retries, panics, context.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use outlast::{ActivityContext, BackoffStrategy, Either2, OrchestrationContext, RetryPolicy};

use crate::model::world::{SOON, World, activities, options, orchestration};

#[tokio::test]
async fn an_error_and_a_panic_of_an_activity_reach_the_code_as_err() {
    let registry = activities().register("Panic", |_: ActivityContext, _: String| async move { panic!("ouch") });
    let code = |ctx: OrchestrationContext, _: String| async move {
        let error = ctx.schedule_activity("Fail", "no").await.unwrap_err();
        let panic = ctx.schedule_activity("Panic", "").await.unwrap_err();
        Ok(format!("{error}; {panic}"))
    };
    let world = World::start(registry, orchestration("Errors", code)).await;
    assert_eq!(world.run("Errors", "").await.unwrap(), "no; activity panicked: ouch");
}

#[tokio::test]
async fn a_retry_goes_on_until_success_with_one_idempotency_key_and_counted_attempts() {
    let tries = Arc::new(AtomicU32::new(0));
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (count, keys) = (tries.clone(), seen.clone());
    let registry = activities().register("Flaky", move |ctx: ActivityContext, _: String| {
        let (count, keys) = (count.clone(), keys.clone());
        async move {
            keys.lock().unwrap().push((ctx.attempt(), ctx.idempotency_key(), ctx.last_heartbeat()));
            ctx.heartbeat(format!("try {}", ctx.attempt()));
            if count.fetch_add(1, Ordering::SeqCst) < 2 { Err("not yet".to_owned()) } else { Ok("done".to_owned()) }
        }
    });
    let code = |ctx: OrchestrationContext, _: String| async move {
        let policy = RetryPolicy::new(5).with_backoff(BackoffStrategy::Fixed { delay: Duration::from_millis(5) });
        ctx.schedule_activity_with_retry("Flaky", "", policy).await
    };
    let world = World::start(registry, orchestration("Retry", code)).await;
    assert_eq!(world.run("Retry", "").await.unwrap(), "done");
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.iter().map(|(attempt, ..)| *attempt).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(seen.iter().all(|(_, key, _)| *key == seen[0].1), "{seen:?}");
    assert_eq!(seen[2].2.as_deref(), Some("try 2"));
}

#[tokio::test]
async fn a_timeout_ends_a_retry_at_once() {
    let registry = activities().register("Slow", |ctx: ActivityContext, _: String| async move {
        ctx.cancelled().await;
        Err("stopped".to_owned())
    });
    let code = |ctx: OrchestrationContext, _: String| async move {
        let policy = RetryPolicy::new(5).with_timeout(Duration::from_millis(30));
        ctx.schedule_activity_with_retry("Slow", "", policy).await
    };
    let world = World::start(registry, orchestration("Timeout", code)).await;
    let details = world.run("Timeout", "").await.unwrap_err();
    assert_eq!(details.display_message(), "timeout: activity timed out");
}

#[tokio::test]
async fn typed_calls_carry_json_both_ways() {
    let registry = activities()
        .register_typed("Sum", |_: ActivityContext, numbers: Vec<i64>| async move { Ok(numbers.iter().sum::<i64>()) });
    let orchestrations = outlast::OrchestrationRegistry::builder().register_typed(
        "Typed",
        |ctx: OrchestrationContext, numbers: Vec<i64>| async move {
            let sum: i64 = ctx.schedule_activity_typed("Sum", &numbers).await?;
            Ok(sum * 2)
        },
    );
    let world = World::start(registry, orchestrations).await;
    world.client.start_orchestration_typed("i", "Typed", &vec![1, 2, 3]).await.unwrap();
    let doubled: i64 = world.client.wait_for_orchestration_typed("i", crate::model::world::SOON).await.unwrap();
    assert_eq!(doubled, 12);
}

#[tokio::test]
async fn an_activity_that_nobody_has_registered_is_poison_after_its_attempts() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let _never_seen = ctx.schedule_activity("Nobody", "").await;
        Ok("code must not see it".to_owned())
    };
    let few = outlast::RuntimeOptions { max_attempts: 3, ..options() };
    let world = World::start_with(activities(), orchestration("Poison", code), few).await;
    let details = world.run("Poison", "").await.unwrap_err();
    assert!(matches!(details, outlast::ErrorDetails::Poison { attempt_count: 3, .. }), "{details:?}");
    assert_eq!(details.category(), "infrastructure");
}

#[tokio::test]
async fn an_orchestration_that_nobody_has_registered_is_a_problem_and_then_poison() {
    let few = outlast::RuntimeOptions { max_attempts: 4, ..options() };
    let code = |_: OrchestrationContext, _: String| async move { Ok(String::new()) };
    let world = World::start_with(activities(), orchestration("Known", code), few).await;
    world.client.start_orchestration("i", "Nobody", "").await.unwrap();
    let problems = async {
        loop {
            let problems = world.client.list_problems().await.unwrap();
            if let Some(problem) = problems.into_iter().next() {
                return problem;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let problem = tokio::time::timeout(SOON, problems).await.unwrap();
    assert_eq!((problem.instance_id.as_str(), problem.reason.as_str()), ("i", "unregistered orchestration"));
    let details = world.outcome("i").await.unwrap_err();
    assert!(matches!(details, outlast::ErrorDetails::Poison { attempt_count: 4, .. }), "{details:?}");
}

#[tokio::test]
async fn work_that_nobody_serves_is_listed_and_then_not() {
    let code = |ctx: OrchestrationContext, input: String| async move {
        let activity = ctx.schedule_activity(if input == "tag" { "Echo" } else { "Missing" }, input.clone());
        let activity = if input == "tag" { activity.with_tag("gpu") } else { activity };
        match ctx.select2(activity, ctx.schedule_wait("stop")).await {
            Either2::First(result) => result,
            Either2::Second(stopped) => Ok(stopped),
        }
    };
    let mut patient = options();
    patient.max_attempts = 1_000;
    let world = World::start_with(activities(), orchestration("Job", code), patient).await;
    for id in ["tag", "name"] {
        world.client.start_orchestration(id, "Job", id).await.unwrap();
    }
    let listed = async |count: usize| {
        for _ in 0..200 {
            let problems = world.client.list_problems().await.unwrap();
            if problems.len() == count {
                return problems;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{count} problems are not listed: {:?}", world.client.list_problems().await);
    };
    let problems = listed(2).await;
    assert_eq!(problems[0].instance_id, "name");
    assert_eq!(problems[0].reason, "no worker has registered activity Missing");
    assert_eq!((problems[1].reason.as_str(), problems[1].waiting), ("no worker takes the tag \"gpu\"", 1));
    for id in ["tag", "name"] {
        world.client.raise_event(id, "stop", "stopped").await.unwrap();
        assert_eq!(world.outcome(id).await.unwrap(), "stopped");
    }
    listed(0).await;
}
