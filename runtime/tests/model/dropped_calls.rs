//! Goal: what a call has made durable happens at once, also when its future was dropped half-way: by a `select!`, a timeout,
//! or an HTTP client that hangs up.
//! Method: each call is polled so many times and dropped; then its consequence must come without any other call.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use outlast::{OrchestrationContext, OrchestrationRegistry, OrchestrationStatus, StartConflict, StartOptions};

use crate::model::world::{World, activities};

/// Polls before the drop, and pauses between them: in a pause the answer arrives and is not looked at.
const DROPS: [(usize, u64); 8] = [(1, 0), (2, 0), (3, 0), (5, 0), (1, 15), (2, 15), (3, 15), (4, 15)];

async fn dropped<T>((polls, pause): (usize, u64), call: impl Future<Output = T>) {
    let mut call = pin!(call);
    for _ in 0..polls {
        if futures::poll!(call.as_mut()).is_ready() {
            return;
        }
        if pause > 0 {
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
}

async fn world() -> World {
    let registry = OrchestrationRegistry::builder()
        .register("Twice", |ctx: OrchestrationContext, input: String| async move {
            let once = ctx.schedule_activity("Echo", input).await?;
            ctx.schedule_activity("Echo", once).await
        })
        .register("Event", |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("e").await) })
        .register("Queue", |ctx: OrchestrationContext, _: String| async move { Ok(ctx.dequeue_event("q").await) });
    World::start(activities(), registry).await
}

/// Whether what was dropped has been written, once everything that was asked for before has been.
async fn settled(world: &World, id: &str) -> bool {
    world.client.start_orchestration(format!("{id} settled"), "Twice", "").await.unwrap();
    world.client.get_orchestration_status(id).await.unwrap() != OrchestrationStatus::NotFound
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_dropped_runs_if_it_was_written() {
    let world = world().await;
    for (n, drop) in DROPS.into_iter().enumerate() {
        let id = format!("i{n}");
        dropped(drop, world.client.start_orchestration(&id, "Twice", "x")).await;
        if settled(&world, &id).await {
            assert_eq!(world.outcome(&id).await.unwrap(), "x", "{drop:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_call_was_dropped_arrives() {
    let world = world().await;
    for (n, drop) in DROPS.into_iter().enumerate() {
        let (event, queue, cancelled) = (format!("e{n}"), format!("q{n}"), format!("c{n}"));
        for (id, orchestration) in [(&event, "Event"), (&queue, "Queue"), (&cancelled, "Queue")] {
            world.client.start_orchestration(id, orchestration, "").await.unwrap();
            world.events(id, 2).await;
        }
        dropped(drop, world.client.raise_event(&event, "e", "x")).await;
        dropped(drop, world.client.enqueue_event(&queue, "q", "y")).await;
        dropped(drop, world.client.cancel_instance(&cancelled, "stop")).await;
        assert_eq!(world.outcome(&event).await.unwrap(), "x", "{drop:?}");
        assert_eq!(world.outcome(&queue).await.unwrap(), "y", "{drop:?}");
        assert!(world.outcome(&cancelled).await.unwrap_err().display_message().contains("stop"), "{drop:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumption_whose_call_was_dropped_takes_place() {
    let world = world().await;
    for (n, drop) in DROPS.into_iter().enumerate() {
        let id = format!("i{n}");
        world.client.start_orchestration(&id, "Queue", "").await.unwrap();
        world.events(&id, 2).await;
        dropped(drop, world.client.pause_instance(&id)).await;
        world.client.enqueue_event(&id, "q", "x").await.unwrap();
        dropped(drop, world.client.resume_instance(&id)).await;
        assert_eq!(world.outcome(&id).await.unwrap(), "x", "{drop:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_start_or_a_fork_that_was_dropped_runs_if_it_was_written() {
    let world = world().await;
    world.client.start_orchestration("done", "Twice", "x").await.unwrap();
    world.outcome("done").await.unwrap();
    for (n, drop) in DROPS.into_iter().enumerate() {
        let (anew, fork) = (format!("a{n}"), format!("f{n}"));
        world.client.start_orchestration(&anew, "Queue", "").await.unwrap();
        world.events(&anew, 2).await;
        let start = StartOptions {
            instance: anew.clone(),
            orchestration: "Twice".to_owned(),
            input: "new".to_owned(),
            on_conflict: StartConflict::TerminateExisting,
            ..StartOptions::default()
        };
        dropped(drop, world.client.start_with(start)).await;
        dropped(drop, world.client.fork_instance("done", 1, 4, &fork)).await;
        if settled(&world, &fork).await {
            assert_eq!(world.outcome(&fork).await.unwrap(), "x", "{drop:?}");
        }
        // It may have been dropped before anything was written, and then the old life goes on.
        let status = world.client.wait_for_orchestration(&anew, Duration::from_millis(300)).await;
        if status.is_err() {
            world.client.enqueue_event(&anew, "q", "old").await.unwrap();
        }
        let outcome = world.outcome(&anew).await.unwrap();
        assert!(outcome == "new" || status.is_err() && outcome == "old", "{drop:?}: {outcome}");
    }
}
