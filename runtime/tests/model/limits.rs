//! What is refused, and that it is refused at the call.

use outlast::{ClientError, OrchestrationContext};

use crate::model::world::{World, activities, orchestration};
use crate::place::Place;

fn message(result: Result<(), ClientError>) -> String {
    match result {
        Err(ClientError::InvalidInput { message }) => message,
        other => panic!("expected invalid input, got {other:?}"),
    }
}

#[tokio::test]
async fn bad_input_is_refused_at_the_call_with_what_to_do() {
    let code = |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("go").await) };
    let world = World::start(activities(), orchestration("Wait", code)).await;
    let client = &world.client;
    let big = "x".repeat((8 << 20) + 1);
    assert!(message(client.start_orchestration("i", "Wait", &big).await).contains("payload_bytes_max"));
    assert!(message(client.start_orchestration("", "Wait", "").await).contains("instance id"));
    assert!(message(client.start_orchestration("a::sub::1", "Wait", "").await).contains("reserved"));
    assert!(message(client.start_orchestration("i", "", "").await).contains("orchestration name"));
    assert!(message(client.start_orchestration_versioned("i", "Wait", "1.x", "").await).contains("semantic version"));
    client.start_orchestration("i", "Wait", "").await.unwrap();
    assert!(message(client.raise_event("i", "", "").await).contains("event name"));
    assert!(message(client.enqueue_event("i", "q", &big).await).contains("payload_bytes_max"));
}

#[tokio::test]
async fn an_eight_mebibyte_payload_goes_through() {
    let code = |ctx: OrchestrationContext, input: String| async move { ctx.schedule_activity("Echo", input).await };
    let world = World::start(activities(), orchestration("Big", code)).await;
    let big = "x".repeat(8 << 20);
    assert_eq!(world.run("Big", &big).await.unwrap().len(), 8 << 20);
}

#[tokio::test]
async fn more_activities_than_the_broker_takes_at_once_all_run() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let calls = (0..300).map(|n| ctx.schedule_activity("Echo", n.to_string())).collect();
        Ok(ctx.join(calls).await.into_iter().collect::<Result<Vec<_>, _>>()?.join(" "))
    };
    let mut options = crate::model::world::options();
    options.limits.dispatch_window = 8;
    let world = World::start_with(activities(), orchestration("Many", code), options).await;
    let expected: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    assert_eq!(world.run("Many", "").await.unwrap(), expected.join(" "));
}

#[tokio::test]
async fn a_full_queue_refuses_the_sender_and_drops_nothing() {
    let place = Place::default();
    let provider = place.open().await;
    let code = |ctx: OrchestrationContext, _: String| async move {
        ctx.schedule_wait("go").await;
        Ok(format!("{}{}", ctx.dequeue_event("q").await, ctx.dequeue_event("q").await))
    };
    let world =
        World::on(provider.clone(), activities(), orchestration("Queue", code), crate::model::world::options()).await;
    let limits = outlast::Limits { queue_messages_max: 2, ..outlast::Limits::default() };
    let options = outlast::ClientOptions { limits, ..outlast::ClientOptions::default() };
    let client = outlast::Client::with_options(provider, options);
    client.start_orchestration("i", "Queue", "").await.unwrap();
    client.enqueue_event("i", "q", "a").await.unwrap();
    client.enqueue_event("i", "q", "b").await.unwrap();
    let refused = client.enqueue_event("i", "q", "c").await.unwrap_err();
    assert!(matches!(refused, ClientError::QueueFull { .. }) && refused.is_retryable(), "{refused}");
    world.events("i", 2).await;
    client.raise_event("i", "go", "").await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), "ab");
}

#[tokio::test]
async fn a_code_that_asks_for_too_large_an_input_gets_an_error() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        ctx.schedule_activity("Echo", "x".repeat((8 << 20) + 1)).await
    };
    let world = World::start(activities(), orchestration("Big", code)).await;
    assert!(world.run("Big", "").await.unwrap_err().display_message().contains("payload_bytes_max"));
}

/// The text is larger than what a message of a broker carries; nothing of it is missing.
#[tokio::test]
async fn an_activity_fails_with_a_text_that_is_larger_than_a_message() {
    let code = |ctx: OrchestrationContext, input: String| async move {
        let failed = ctx.schedule_activity("FailLong", &input).await.unwrap_err();
        Ok(failed.len().to_string())
    };
    let activities = activities().register("FailLong", |_: outlast::ActivityContext, bytes: String| async move {
        Err::<String, _>("x".repeat(bytes.parse().unwrap()))
    });
    let world = World::start(activities, orchestration("Fail", code)).await;
    for bytes in ["1048400", "1048576", "300000"] {
        world.client.start_orchestration(bytes, "Fail", bytes).await.unwrap();
        assert_eq!(world.outcome(bytes).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn errors_and_panics_beyond_their_limit_are_cut_and_say_so() {
    let code = |ctx: OrchestrationContext, how: String| async move {
        match how.as_str() {
            "error" => Err("x".repeat(40 << 20)),
            "panic" => panic!("{}", "x".repeat(40 << 20)),
            how => ctx.schedule_activity(how, "").await,
        }
    };
    let activities = activities()
        .register(
            "Error",
            |_: outlast::ActivityContext, _: String| async move { Err::<String, _>("x".repeat(40 << 20)) },
        )
        .register("Panic", |_: outlast::ActivityContext, _: String| async move { panic!("{}", "x".repeat(40 << 20)) });
    let world = World::start(activities, orchestration("Fail", code)).await;
    for how in ["error", "panic", "Error", "Panic"] {
        world.client.start_orchestration(how, "Fail", how).await.unwrap();
        let message = world.outcome(how).await.unwrap_err().display_message();
        let end = &message[message.len() - 100..];
        assert!(message.len() <= (1 << 20) + 100 && message.contains("xxx"), "{how}: {} bytes", message.len());
        assert!(end.contains("cut: ") && end.contains("error_bytes_max"), "{how}: {end}");
    }
}

#[tokio::test]
async fn heartbeat_details_beyond_their_limit_are_cut_and_say_so() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let again = outlast::RetryPolicy::new(2).with_backoff(outlast::BackoffStrategy::None);
        ctx.schedule_activity_with_retry("Beat", "", again).await
    };
    let activities = activities().register("Beat", |ctx: outlast::ActivityContext, _: String| async move {
        if ctx.attempt() == 1 {
            ctx.heartbeat("x".repeat(20 << 20));
            return Err("again".to_owned());
        }
        let details = ctx.last_heartbeat().unwrap_or_default();
        Ok(format!("{} {}", details.len(), &details[details.len().saturating_sub(60)..]))
    });
    let world = World::start(activities, orchestration("Beat", code)).await;
    let said = world.run("Beat", "").await.unwrap();
    assert!(said.starts_with("1048576 ") && said.contains("heartbeat_bytes_max"), "{said}");
}

#[tokio::test]
async fn a_runtime_with_other_limits_goes_on_with_what_the_first_began() {
    let code = |ctx: OrchestrationContext, size: String| async move {
        let large = "x".repeat(size.parse().map_err(|_| "a number")?);
        let first = ctx.schedule_activity("Echo", &large).await.map_or_else(|_| 0, |echo| echo.len());
        ctx.schedule_wait("go").await;
        Ok(first.to_string())
    };
    let place = Place::default();
    let (few, many) = (1_000, 8 << 20);
    for (round, (first, then)) in [(many, few), (few, many)].into_iter().enumerate() {
        let id = format!("i{round}");
        for (limit, word) in [(first, None), (then, Some("go"))] {
            let mut options = crate::model::world::options();
            options.limits.payload_bytes_max = limit;
            let provider = place.open().await;
            let world = World::on(provider, activities(), orchestration("Large", code), options).await;
            match word {
                None => {
                    world.client.start_orchestration(&id, "Large", "5000").await.unwrap();
                    let scheduled = if first == many { 4 } else { 2 };
                    world.events(&id, scheduled).await;
                }
                Some(word) => {
                    world.client.raise_event(&id, word, "").await.unwrap();
                    let expected = if first == many { "5000" } else { "0" };
                    assert_eq!(world.outcome(&id).await.unwrap(), expected);
                }
            }
            world.runtime.shutdown(Some(5_000)).await;
        }
    }
}
