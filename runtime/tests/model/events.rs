//! Ephemeral events and durable queues.

use outlast::{OrchestrationContext, OrchestrationRegistry};

use crate::model::world::{World, activities, orchestration};

#[tokio::test]
async fn queue_messages_come_in_order_through_continue_as_new() {
    let code = |ctx: OrchestrationContext, so_far: String| async move {
        let message = ctx.dequeue_event("inbox").await;
        if message == "end" {
            return Ok(so_far);
        }
        ctx.continue_as_new(format!("{so_far}{message},")).await
    };
    let world = World::start(activities(), orchestration("Collect", code)).await;
    world.client.start_orchestration("i", "Collect", "").await.unwrap();
    for n in 0..100 {
        world.client.enqueue_event("i", "inbox", n.to_string()).await.unwrap();
    }
    world.client.enqueue_event("i", "inbox", "end").await.unwrap();
    let expected: String = (0..100).map(|n| format!("{n},")).collect();
    assert_eq!(world.outcome("i").await.unwrap(), expected);
    assert_eq!(world.client.list_executions("i").await.unwrap().len(), 101);
}

#[tokio::test]
async fn the_nth_wait_takes_the_nth_event() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let (first, second) = (ctx.schedule_wait("e"), ctx.schedule_wait("e"));
        let (first, second) = ctx.join2(first, second).await;
        Ok(format!("{first}{second}"))
    };
    let world = World::start(activities(), orchestration("Two", code)).await;
    world.client.start_orchestration("i", "Two", "").await.unwrap();
    world.events("i", 3).await;
    world.client.raise_event("i", "e", "1").await.unwrap();
    world.client.raise_event("i", "e", "2").await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), "12");
}

#[tokio::test]
async fn a_mailbox_of_ten_thousand_messages_is_drained() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let mut sum = 0_u64;
        for _ in 0..10_000 {
            sum += ctx.dequeue_event("numbers").await.parse::<u64>().map_err(|error| error.to_string())?;
        }
        Ok(sum.to_string())
    };
    let world = World::start(activities(), orchestration("Sum", code)).await;
    world.client.start_orchestration("i", "Sum", "").await.unwrap();
    let sends = (0..10_000).map(|n: u64| world.client.enqueue_event("i", "numbers", n.to_string()));
    futures::future::try_join_all(sends).await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), (0..10_000_u64).sum::<u64>().to_string());
}

#[tokio::test]
async fn typed_events_carry_json() {
    let registry =
        OrchestrationRegistry::builder().register("Typed", |ctx: OrchestrationContext, _: String| async move {
            let pair: (u32, String) = ctx.dequeue_event_typed("pairs").await;
            Ok(format!("{} {}", pair.0, pair.1))
        });
    let world = World::start(activities(), registry).await;
    world.client.start_orchestration("i", "Typed", "").await.unwrap();
    world.client.enqueue_event_typed("i", "pairs", &(7, "seven")).await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), "7 seven");
}
