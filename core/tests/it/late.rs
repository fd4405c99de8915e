//! Messages that become visible late, heartbeats that nobody reads any more, and what an endless instance keeps.

use std::time::Duration;

use outlast_core::{
    AttemptInfo, BackoffStrategy, EventKind, Incoming, InstanceStatus, Limits, MessageKind, OrchestrationContext,
    OrchestrationRegistry, RetryPolicy, Turn,
};

use crate::harness::{Bench, start};

fn enqueue(data: &str) -> MessageKind {
    MessageKind::Enqueue { queue: "queue".to_owned(), data: data.to_owned() }
}

#[test]
fn a_queue_message_that_was_numbered_first_and_comes_last_is_taken_in_the_order_of_numbers() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        ctx.schedule_wait("go").await;
        let (first, second) = (ctx.dequeue_event("queue").await, ctx.dequeue_event("queue").await);
        Ok(format!("{first} {second} {}", ctx.dequeue_event("queue").await))
    };
    for is_cold in [false, true] {
        let mut bench = Bench::new(OrchestrationRegistry::builder().register("Queue", code).build());
        bench.send(start("Queue", ""));
        let (early, middle, late) = (bench.row(enqueue("1")), bench.row(enqueue("2")), bench.row(enqueue("3")));
        // Two senders: the row with the greater number was committed first. Rows may be read again, too.
        bench.turn(vec![late.clone()]);
        bench.turn(vec![early.clone(), late]);
        bench.turn(vec![middle, early]);
        if is_cold {
            bench.cold();
        }
        bench.send(MessageKind::Raise { name: "go".to_owned(), data: String::new() });
        assert_eq!(bench.state.output.as_deref(), Some("1 2 3"), "cold: {is_cold}");
        assert!(bench.inbox.is_empty());
    }
}

/// The end of an attempt whose worker says that it has spoken.
fn ended(bench: &Bench, event: u64, outcome: Result<&str, &str>) -> Incoming {
    let mut incoming = bench.result(event, outcome).unwrap();
    if let MessageKind::ActivityDone { run, .. } = &mut incoming.message.kind {
        *run = Some(AttemptInfo { heartbeat: true, ..AttemptInfo::default() });
    }
    incoming
}

fn advance(bench: &mut Bench) -> Turn {
    bench.now = bench.now.plus(Duration::from_secs(60));
    bench.turn(Vec::new())
}

#[test]
fn a_heartbeat_stays_for_the_next_attempt_and_goes_with_the_last() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let policy = RetryPolicy::new(3).with_backoff(BackoffStrategy::Fixed { delay: Duration::from_secs(1) });
        ctx.schedule_activity_with_retry("Tried", "", policy).await.unwrap_or_default();
        ctx.schedule_activity("Once", "").await.unwrap_or_default();
        ctx.schedule_wait("go").await;
        Ok(String::new())
    };
    for is_cold in [false, true] {
        let mut bench = Bench::new(OrchestrationRegistry::builder().register("Job", code).build());
        bench.send(start("Job", ""));
        let mut event = 2;
        for attempt in 1..=3 {
            if is_cold {
                bench.cold();
            }
            let result = ended(&bench, event, Err("no"));
            let stale = bench.turn(vec![result]).heartbeats;
            assert_eq!(stale, if attempt == 3 { vec!["i/1/2".to_owned()] } else { Vec::new() }, "cold: {is_cold}");
            if attempt < 3 {
                advance(&mut bench);
            }
            event = bench.history.last().unwrap().event_id.0;
        }
        let result = ended(&bench, event, Err("for good"));
        assert_eq!(bench.turn(vec![result]).heartbeats, [format!("i/1/{event}")]);
        if is_cold {
            bench.cold();
        }
        // What is over is not taken away again.
        assert!(bench.send(MessageKind::Raise { name: "other".to_owned(), data: String::new() }).heartbeats.is_empty());
    }
}

#[test]
fn heartbeats_of_an_execution_that_goes_on_as_another_go_with_it() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let policy = RetryPolicy::new(3).with_backoff(BackoffStrategy::Fixed { delay: Duration::from_secs(60) });
        let tried = ctx.schedule_activity_with_retry("Tried", "", policy);
        ctx.select2(tried, ctx.schedule_wait("next")).await;
        ctx.continue_as_new("").await
    };
    let mut bench = Bench::new(OrchestrationRegistry::builder().register("Loop", code).build());
    bench.send(start("Loop", ""));
    for execution in 1..4 {
        let position = bench.history.iter().position(|event| format!("{:?}", event.kind).contains("Tried")).unwrap();
        let event = bench.history[position].event_id.0;
        let result = ended(&bench, event, Err("no"));
        assert!(bench.turn(vec![result]).heartbeats.is_empty());
        let next = bench.send(MessageKind::Raise { name: "next".to_owned(), data: String::new() });
        assert_eq!(next.heartbeats, [format!("i/{execution}/{event}")]);
        bench.turn(Vec::new());
    }
}

#[test]
fn one_poll_that_asks_for_more_than_a_history_may_hold_fails_its_instance_and_records_none_of_it() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let all = (0..20).map(|_| ctx.schedule_activity("Work", "x".repeat(1_000))).collect();
        Ok(ctx.join(all).await.len().to_string())
    };
    let limits = Limits { history_bytes_max: 10_000, ..Limits::default() };
    let mut bench = Bench::with_limits(OrchestrationRegistry::builder().register("Wide", code).build(), limits);
    let turn = bench.send(start("Wide", ""));
    assert_eq!(bench.state.status, InstanceStatus::Failed);
    assert!(bench.state.output.as_deref().unwrap().contains("history_bytes_max"), "{:?}", bench.state.output);
    assert!(turn.effects.is_empty() && bench.history.len() == 2, "{:?}", bench.history);
}

#[test]
fn a_turn_takes_queue_messages_up_to_so_many_bytes_and_the_next_takes_the_rest() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        for _ in 0..20 {
            ctx.dequeue_event("queue").await;
        }
        Ok(String::new())
    };
    let mut bench = Bench::new(OrchestrationRegistry::builder().register("Queue", code).build());
    bench.send(start("Queue", ""));
    let data = "x".repeat(1 << 20);
    let rows: Vec<Incoming> = (0..20).map(|_| bench.row(enqueue(&data))).collect();
    let turn = bench.turn(rows);
    let taken = |turn: &Turn| {
        let events = turn.events.iter().map(|(_, event)| &event.kind);
        events.filter(|kind| matches!(kind, EventKind::QueueEventDelivered { .. })).count()
    };
    assert_eq!((taken(&turn), turn.again), (16, true));
    let turn = bench.turn(Vec::new());
    assert_eq!((taken(&turn), turn.again), (4, false));
    assert_eq!(bench.state.status, InstanceStatus::Completed);
}
