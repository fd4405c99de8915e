//! From start to output.

use std::time::{Duration, SystemTime};

use outlast::{ClientError, Either2, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus, StartOptions};

use crate::model::world::{SOON, World, activities, options, orchestration};
use crate::place::Place;

#[tokio::test]
async fn hello_runs_from_start_to_output() {
    let code = |ctx: OrchestrationContext, name: String| async move {
        ctx.schedule_timer(Duration::from_millis(50)).await;
        ctx.schedule_activity("Echo", format!("Hello, {name}!")).await
    };
    let world = World::start(activities(), orchestration("Hello", code)).await;
    assert_eq!(world.run("Hello", "World").await.unwrap(), "Hello, World!");
    world.runtime.shutdown(None).await;
}

#[tokio::test]
async fn a_start_is_idempotent_and_another_name_is_refused() {
    let code = |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("go").await) };
    let world = World::start(activities(), orchestration("Wait", code)).await;
    world.client.start_orchestration("i", "Wait", "1").await.unwrap();
    world.client.start_orchestration("i", "Wait", "2").await.unwrap();
    let refused = world.client.start_orchestration("i", "Other", "").await.unwrap_err();
    assert!(matches!(refused, ClientError::InstanceExists { .. }), "{refused}");
    let again = StartOptions {
        instance: "i".into(),
        orchestration: "Wait".into(),
        on_conflict: outlast::StartConflict::Fail,
        ..StartOptions::default()
    };
    assert!(matches!(world.client.start_with(again).await, Err(ClientError::InstanceExists { .. })));
}

#[tokio::test]
async fn an_instance_goes_on_after_a_restart() {
    let place = Place::default();
    let code = |ctx: OrchestrationContext, input: String| async move {
        let first = ctx.schedule_activity("Echo", input).await?;
        let go = ctx.schedule_wait("go").await;
        ctx.schedule_activity("Echo", format!("{first} {go}")).await
    };
    let world = World::on(place.open().await, activities(), orchestration("Steps", code), options()).await;
    world.client.start_orchestration("i", "Steps", "one").await.unwrap();
    world.events("i", 4).await;
    world.runtime.shutdown(None).await;

    let world = World::on(place.open().await, activities(), orchestration("Steps", code), options()).await;
    world.client.raise_event("i", "go", "two").await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), "one two");
}

#[tokio::test]
async fn time_and_ids_are_the_same_at_every_replay() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let (id, now) = (ctx.new_guid().await?, ctx.utc_now().await?);
        let other = ctx.new_guid().await?;
        assert_ne!(id, other);
        ctx.schedule_activity("Echo", format!("{id} {now:?}")).await?;
        let age = SystemTime::now().duration_since(now).map_err(|error| error.to_string())?;
        assert!(age < Duration::from_secs(60));
        Ok(id)
    };
    // Letting everything go at once makes every turn a cold one.
    let cold = outlast::RuntimeOptions { passivate_after: Duration::ZERO, ..options() };
    let world = World::start_with(activities(), orchestration("Ids", code), cold).await;
    let id = world.run("Ids", "").await.unwrap();
    assert_eq!(id.len(), 36);
    assert_eq!(id.as_bytes()[14], b'4');
}

#[tokio::test]
async fn select_keeps_a_loser_that_was_lent() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let mut slow = ctx.schedule_wait("slow");
        let timer = ctx.schedule_timer(Duration::from_millis(10));
        let first = ctx.select2(&mut slow, timer).await;
        if let Either2::First(_) = first {
            return Err("the timer comes first".to_owned());
        }
        ctx.set_custom_status("waiting");
        Ok(slow.await)
    };
    let world = World::start(activities(), orchestration("Select", code)).await;
    world.client.start_orchestration("i", "Select", "").await.unwrap();
    world.client.wait_for_status_change("i", 0, Duration::from_secs(1), SOON).await.unwrap();
    world.client.raise_event("i", "slow", "late").await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), "late");
}

#[tokio::test]
async fn the_combinators_of_futures_and_tokio_work() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let all = futures::future::join_all((0..100).map(|n| ctx.schedule_activity("Echo", n.to_string()))).await;
        let (a, b) = tokio::join!(ctx.schedule_activity("Echo", "a"), ctx.schedule_activity("Echo", "b"));
        let either = tokio::select! {
            biased;
            value = ctx.schedule_activity("Echo", "c") => value,
            () = ctx.schedule_timer(Duration::from_secs(60)) => Err("late".to_owned()),
        };
        Ok(format!("{} {}{}{}", all.len(), a?, b?, either?))
    };
    let world = World::start(activities(), orchestration("Mix", code)).await;
    assert_eq!(world.run("Mix", "").await.unwrap(), "100 abc");
}

#[tokio::test]
async fn sleeping_in_an_orchestration_is_refused_and_does_not_hang() {
    let code = |_: OrchestrationContext, _: String| async move {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        Ok(String::new())
    };
    let world = World::start(activities(), orchestration("Sleep", code)).await;
    let details = world.run("Sleep", "").await.unwrap_err();
    assert_eq!(details.category(), "configuration");
    assert!(details.display_message().contains("schedule_timer"), "{}", details.display_message());
}

#[tokio::test]
async fn a_panic_harms_nobody_else() {
    let registry = OrchestrationRegistry::builder()
        .register("Panics", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_timer(Duration::from_millis(1)).await;
            panic!("on purpose")
        })
        .register(
            "Fine",
            |ctx: OrchestrationContext, _: String| async move { ctx.schedule_activity("Echo", "fine").await },
        );
    let world = World::start(activities(), registry).await;
    let details = world.run("Panics", "").await.unwrap_err();
    assert_eq!(details.display_message(), "orchestration panicked: on purpose");
    assert_eq!(world.run("Fine", "").await.unwrap(), "fine");
}

#[tokio::test]
async fn a_status_that_nobody_changes_times_out_and_an_unknown_instance_is_not_found() {
    let world = World::start(activities(), OrchestrationRegistry::builder()).await;
    assert_eq!(world.client.get_orchestration_status("none").await.unwrap(), OrchestrationStatus::NotFound);
    let waited = world.client.wait_for_orchestration("none", Duration::from_millis(20)).await;
    assert!(matches!(waited, Err(ClientError::Timeout)));
    let raised = world.client.raise_event("none", "x", "").await;
    assert!(matches!(raised, Err(ClientError::InstanceNotFound { .. })));
}

#[tokio::test]
async fn a_sleep_beside_a_durable_wait_is_found_and_refused() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let wait = ctx.schedule_wait("w");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        Ok(wait.await)
    };
    let world = World::start(activities(), orchestration("Sleeper", code)).await;
    let text = world.run("Sleeper", "").await.unwrap_err().display_message();
    assert!(text.contains("ctx.schedule_timer instead of sleep"), "{text}");
}

#[tokio::test]
async fn every_call_of_a_client_can_be_awaited_by_a_task() {
    let world = World::start(activities(), orchestration("Job", |_, input| async move { Ok(input) })).await;
    let client = world.client.clone();
    let task = tokio::spawn(async move {
        client.start_orchestration("i", "Job", "1").await?;
        client.wait_for_orchestration("i", SOON).await?;
        client.wait_for_status_change("i", 0, SOON, SOON).await?;
        let _: Result<String, ClientError> = client.wait_for_kv_value("i", "k", Duration::ZERO).await;
        let _: Result<u32, ClientError> = client.wait_for_kv_value_typed("i", "k", Duration::ZERO).await;
        client.wait_for_orchestration_typed::<u32>("i", SOON).await
    });
    assert_eq!(task.await.unwrap().unwrap(), 1);
}
