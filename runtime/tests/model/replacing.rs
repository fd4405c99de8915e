//! New starts under an id that is in use, and other things that meet an instance at the wrong moment.

use std::time::Duration;

use outlast::{Either2, OrchestrationContext, OrchestrationRegistry, StartConflict, StartOptions};

use crate::model::world::{SOON, World, activities, options, orchestration};

fn anew(id: &str, orchestration: &str, input: &str) -> StartOptions {
    StartOptions {
        instance: id.to_owned(),
        orchestration: orchestration.to_owned(),
        input: input.to_owned(),
        on_conflict: StartConflict::TerminateExisting,
        ..StartOptions::default()
    }
}

/// Waits for one message of its queue and says whose it is.
async fn first_message(ctx: OrchestrationContext, life: String) -> Result<String, String> {
    Ok(format!("{life} {}", ctx.dequeue_event("q").await))
}

async fn world() -> World {
    let short = |ctx: OrchestrationContext, life: String| async move { ctx.schedule_activity("Echo", life).await };
    let registry = OrchestrationRegistry::builder().register("Queue", first_message).register("Short", short);
    World::start(activities(), registry).await
}

#[tokio::test]
async fn what_follows_a_new_start_is_for_the_new_life() {
    let world = world().await;
    for round in 0..15 {
        let id = format!("i{round}");
        world.client.start_orchestration(&id, "Queue", "old").await.unwrap();
        world.client.start_with(anew(&id, "Queue", "new")).await.unwrap();
        world.client.enqueue_event(&id, "q", "hello").await.unwrap();
        assert_eq!(world.outcome(&id).await.unwrap(), "new hello");
    }
}

#[tokio::test]
async fn a_new_start_is_not_lost_to_the_end_of_the_old_life() {
    let world = world().await;
    for round in 0..40 {
        let id = format!("i{round}");
        world.client.start_orchestration(&id, "Short", "old").await.unwrap();
        tokio::time::sleep(Duration::from_micros(round * 60)).await;
        let started = world.client.start_with(anew(&id, "Queue", "new"));
        let (started, _cancelled) = tokio::join!(started, async {
            if round % 2 == 0 { world.client.cancel_instance(&id, "stop").await } else { Ok(()) }
        });
        started.unwrap();
        // Whether the cancel came before the new start or after it, the new start has begun.
        world.client.enqueue_event(&id, "q", "hello").await.unwrap();
        match world.outcome(&id).await {
            Ok(output) => assert_eq!(output, "new hello"),
            Err(details) => assert_eq!((round % 2, details.display_message().as_str()), (0, "canceled: stop")),
        }
        let last = world.client.list_executions(&id).await.unwrap().into_iter().next_back().unwrap();
        let history = world.client.read_execution_history(&id, last).await.unwrap();
        assert!(format!("{:?}", history[0].kind).contains("\"Queue\""), "the new start never ran");
    }
}

#[tokio::test]
async fn two_new_starts_both_run_and_the_old_lifes_queue_is_gone() {
    let world = world().await;
    world.client.start_orchestration("i", "Short", "old").await.unwrap();
    world.outcome("i").await.unwrap();
    world.client.start_with(anew("i", "Short", "first")).await.unwrap();
    let (one, two) = tokio::join!(
        world.client.start_with(anew("i", "Queue", "one")),
        world.client.start_with(anew("i", "Queue", "two"))
    );
    assert!(one.is_ok() && two.is_ok());
    world.client.enqueue_event("i", "q", "hello").await.unwrap();
    let output = world.outcome("i").await.unwrap();
    assert!(["one hello", "two hello"].contains(&output.as_str()), "{output}");
    assert!(world.client.list_executions("i").await.unwrap().len() >= 3);

    world.client.start_orchestration("q", "Short", "x").await.unwrap();
    world.client.start_with(anew("q", "Queue", "a")).await.unwrap();
    world.client.enqueue_event("q", "other", "OLD").await.unwrap();
    world.client.start_with(anew("q", "Queue", "b")).await.unwrap();
    world.client.enqueue_event("q", "q", "NEW").await.unwrap();
    assert_eq!(world.outcome("q").await.unwrap(), "b NEW");
    assert_eq!(world.client.get_queue_depths().await.unwrap().orchestrator_queue, 0);
}

#[tokio::test]
async fn a_child_id_that_is_taken_harms_nobody() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let child = ctx.schedule_sub_orchestration_with_id("Wait", "victim", "");
        match ctx.select2(child, ctx.schedule_timer(Duration::from_millis(1))).await {
            Either2::First(result) => result.or_else(Ok),
            Either2::Second(()) => Ok("timer".to_owned()),
        }
    };
    let wait = |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("go").await) };
    let registry = orchestration("Thief", code).register("Wait", wait);
    let world = World::start(activities(), registry).await;
    world.client.start_orchestration("victim", "Wait", "").await.unwrap();
    world.events("victim", 2).await;
    for round in 0..10 {
        let id = format!("thief{round}");
        world.client.start_orchestration(&id, "Thief", "").await.unwrap();
        world.outcome(&id).await.unwrap();
    }
    world.client.raise_event("victim", "go", "free").await.unwrap();
    assert_eq!(world.outcome("victim").await.unwrap(), "free");
}

#[tokio::test]
async fn an_id_that_was_deleted_while_it_was_paused_can_be_started_again() {
    let world = world().await;
    world.client.start_orchestration("i", "Queue", "old").await.unwrap();
    world.events("i", 2).await;
    world.client.pause_instance("i").await.unwrap();
    world.events("i", 3).await;
    world.client.delete_instance("i", true).await.unwrap();
    world.client.start_orchestration("i", "Short", "new").await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), "new");
}

/// Speaks, or panics, when it is dropped.
struct Guard(OrchestrationContext, bool);

impl Drop for Guard {
    fn drop(&mut self) {
        assert!(!self.1, "dropped");
        self.0.set_kv_value("lock", "free");
    }
}

#[tokio::test]
async fn code_that_panics_while_it_is_dropped_still_ends() {
    let code = |ctx: OrchestrationContext, input: String| async move {
        let _guard = Guard(ctx.clone(), input == "panic");
        if input == "again" {
            return ctx.continue_as_new("panic").await;
        }
        Ok(ctx.schedule_wait("go").await)
    };
    let world = World::start(activities(), orchestration("Guarded", code)).await;
    for input in ["panic", "speak", "again"] {
        world.client.start_orchestration(input, "Guarded", input).await.unwrap();
        world.events(input, 2).await;
        world.client.cancel_instance(input, "bye").await.unwrap();
        let details = world.outcome(input).await.unwrap_err();
        assert_eq!(details.display_message(), "canceled: bye");
    }
}

#[tokio::test]
async fn a_paused_instance_without_its_code_is_a_problem_when_it_is_resumed() {
    let place = crate::place::Place::default();
    let world = World::on(place.open().await, activities(), orchestration("Queue", first_message), options()).await;
    world.client.start_orchestration("i", "Queue", "x").await.unwrap();
    world.events("i", 2).await;
    world.client.pause_instance("i").await.unwrap();
    world.events("i", 3).await;
    world.runtime.shutdown(None).await;
    let other = orchestration("Other", first_message);
    let world = World::on(place.open().await, activities(), other, options()).await;
    world.client.resume_instance("i").await.unwrap();
    let details = world.outcome("i").await.unwrap_err();
    assert!(details.display_message().contains("no node has registered it"), "{details:?}");
}

#[tokio::test]
async fn a_shutdown_fails_no_running_activity() {
    let place = crate::place::Place::default();
    let slow = || {
        activities().register("Slow", |ctx: outlast::ActivityContext, _: String| async move {
            tokio::select! {
                () = ctx.cancelled() => Err("stopped".to_owned()),
                () = tokio::time::sleep(Duration::from_millis(600)) => Ok("done".to_owned()),
            }
        })
    };
    let code = |ctx: OrchestrationContext, _: String| async move { ctx.schedule_activity("Slow", "").await };
    let provider = place.open().await;
    let first = World::on(provider.clone(), slow(), orchestration("Job", code), options()).await;
    let second = World::on(provider, slow(), orchestration("Job", code), options()).await;
    for number in 0..8 {
        second.client.start_orchestration(format!("i{number}"), "Job", "").await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(150)).await;
    first.runtime.shutdown(Some(50)).await;
    for number in 0..8 {
        assert_eq!(second.outcome(&format!("i{number}")).await.unwrap(), "done");
    }
}

#[tokio::test]
async fn a_wait_may_be_for_ever_and_a_fork_has_its_values() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        ctx.set_kv_value("k", "v");
        ctx.schedule_activity("Echo", "").await?;
        Ok(ctx.schedule_wait("go").await)
    };
    let world = World::start(activities(), orchestration("Job", code)).await;
    world.client.start_orchestration("i", "Job", "").await.unwrap();
    world.events("i", 5).await;
    world.client.fork_instance("i", 1, 5, "fork").await.unwrap();
    assert_eq!(world.client.get_kv_value("fork", "k").await.unwrap().as_deref(), Some("v"));
    world.client.raise_event("i", "go", "").await.unwrap();
    tokio::time::timeout(SOON, world.client.wait_for_orchestration("i", Duration::MAX)).await.unwrap().unwrap();
}
