//! Goal: a warm turn and a cold replay decide the same, and no prefix of a history makes replay panic.
//! Method: an orchestration that interprets a random program meets random messages; beside the warm instance a cold one is
//! hydrated before every turn from what was stored, and both must decide the same turn.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use outlast_core::{
    Decision, Either2, EventKind, Incoming, InstanceStatus, MessageKind, OrchestrationContext, OrchestrationRegistry,
    RetryPolicy, TurnInput, check_replay,
};
use proptest::prelude::*;

use crate::harness::{Bench, hydrate, start};

/// Letters of a program: one durable thing each.
async fn interpret(ctx: OrchestrationContext, program: String) -> Result<String, String> {
    let mut log = String::new();
    let mut kept = Vec::new();
    for letter in program.chars() {
        match letter {
            'a' => log += &ctx.schedule_activity("A", log.len().to_string()).await.unwrap_or_else(|e| e),
            'r' => log += &ctx.schedule_activity_with_retry("R", "", RetryPolicy::new(2)).await.unwrap_or_else(|e| e),
            'f' => {
                log += &ctx
                    .join((0..3).map(|n| ctx.schedule_activity("F", n.to_string())).collect())
                    .await
                    .len()
                    .to_string()
            }
            't' => ctx.schedule_timer(Duration::from_secs(1)).await,
            'w' => log += &ctx.schedule_wait("event").await,
            'q' => log += &ctx.dequeue_event("queue").await,
            'k' => kept.push(ctx.schedule_activity("K", "kept")),
            'd' => drop(ctx.schedule_activity("D", "dropped")),
            's' => {
                match ctx.select2(ctx.schedule_activity("S", ""), ctx.schedule_timer(Duration::from_secs(2))).await {
                    Either2::First(result) => log += &result.unwrap_or_else(|e| e),
                    Either2::Second(()) => log += "timeout",
                }
            }
            'x' => {
                let racing = ctx.schedule_wait("event");
                match (kept.pop(), racing) {
                    (Some(kept), racing) => log += &format!("{:?}", ctx.select2(kept, racing).await),
                    (None, racing) => drop(racing),
                }
            }
            'u' => {
                let calls = (0..3).map(|n| ctx.schedule_activity("U", n.to_string()));
                let mut open: FuturesUnordered<_> = calls.collect();
                let mut late = ctx.schedule_timer(Duration::from_secs(2));
                log += &ctx.schedule_wait("event").await;
                while let Either2::First(Some(result)) = ctx.select2(open.next(), &mut late).await {
                    log += &result.unwrap_or_else(|e| e);
                    drop(ctx.schedule_activity("D", &log));
                }
            }
            'v' => ctx.set_kv_value("v", &log),
            'c' => ctx.set_custom_status(&log),
            'g' => log += &ctx.new_guid().await?,
            'n' => return ctx.continue_as_new(program.replacen('n', "a", 1)).await,
            other => return Err(format!("no such letter {other}")),
        }
    }
    Ok(log)
}

fn registry() -> OrchestrationRegistry {
    OrchestrationRegistry::builder().register("program", interpret).build()
}

/// A message for the instance, made from what is outstanding.
fn message(bench: &mut Bench, choice: u8) -> Option<Incoming> {
    match choice % 5 {
        0 => Some(bench.row(MessageKind::Raise { name: "event".to_owned(), data: format!("e{choice}") })),
        1 => Some(bench.row(MessageKind::Enqueue { queue: "queue".to_owned(), data: format!("q{choice}") })),
        2 => None,
        _ => {
            let scheduled: Vec<u64> = bench
                .history
                .iter()
                .filter(|event| matches!(event.kind, EventKind::ActivityScheduled { .. }))
                .map(|event| event.event_id.0)
                .collect();
            let event = *scheduled.get(usize::from(choice) % scheduled.len().max(1))?;
            let outcome = if choice.is_multiple_of(7) { Err("err") } else { Ok("ok") };
            bench.result(event, outcome)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn warm_and_cold_decide_the_same(program in "[arftwqkdsxuvcgn]{1,12}", choices in proptest::collection::vec((any::<u8>(), 0u64..1500), 1..60)) {
        let mut bench = Bench::new(registry());
        bench.send(start("program", &program));
        for (choice, pause) in choices {
            if bench.state.status != InstanceStatus::Running {
                break;
            }
            bench.now = bench.now.plus(Duration::from_millis(pause));
            let rows = bench.inbox.clone();
            let messages: Vec<Incoming> = message(&mut bench, choice).into_iter().collect();
            let mut cold = hydrate(&bench.state, &bench.history, &bench.limits);
            let mut all = rows;
            all.extend(messages.clone());
            let mut dedup = Vec::new();
            for incoming in all {
                if !dedup.contains(&incoming) { dedup.push(incoming); }
            }
            let input = TurnInput { now: bench.now, seed: 7, messages: dedup };
            let Decision::Turn(by_cold) = cold.decide(input, &bench.handlers) else { panic!("registered") };
            let input = TurnInput { now: bench.now, seed: 7, messages };
            let Decision::Turn(by_warm) = bench.warm.decide(input, &bench.handlers) else { panic!("registered") };
            prop_assert_eq!(&by_warm.events, &by_cold.events);
            prop_assert_eq!(&by_warm.state, &by_cold.state);
            prop_assert_eq!(&by_warm.effects, &by_cold.effects);
            prop_assert_eq!(&by_warm.outbound, &by_cold.outbound);
            prop_assert_eq!(&by_warm.kv, &by_cold.kv);
            prop_assert_eq!(&by_warm.heartbeats, &by_cold.heartbeats);
            bench.take(&by_warm);
        }
        let exported = bench.exported();
        for length in 0..=exported.len() {
            // Every prefix ends in a result; most are in the middle of a turn and differ, none may panic.
            let _result = check_replay(&bench.handlers, &exported[..length]);
        }
        prop_assert_eq!(check_replay(&bench.handlers, &exported), Ok(()));
    }
}
