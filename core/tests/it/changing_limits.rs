//! Limits that are other ones when a history is replayed: what was decided once is not decided again.

use std::time::Duration;

use outlast_core::{
    EventKind, InstanceStatus, Limits, MessageKind, OrchestrationContext, OrchestrationRegistry, check_replay,
};

use crate::harness::{Bench, start};

fn low() -> Limits {
    Limits {
        payload_bytes_max: 50,
        name_bytes_max: 30,
        kv_keys_max: 2,
        kv_value_bytes_max: 50,
        custom_status_bytes_max: 50,
        commands_per_turn_max: 30,
        ..Limits::default()
    }
}

/// Uses more of everything than the low limits allow, and says what was refused.
async fn greedy(ctx: OrchestrationContext, _: String) -> Result<String, String> {
    let large = "x".repeat(100);
    let mut refused = 0;
    for round in 0..2 {
        let mut calls = Vec::new();
        for _ in 0..10 {
            calls.push(ctx.schedule_activity("A", large.clone()));
            calls.push(ctx.schedule_activity(&large, "x"));
            calls.push(ctx.schedule_sub_orchestration(&large, large.clone()));
        }
        let word = ctx.schedule_wait("go").await;
        refused += ctx.join(calls).await.into_iter().filter(|result| result.is_err()).count();
        if round == 0 && word != "small" {
            for key in 0..5 {
                ctx.set_kv_value(format!("k{key}"), &large);
            }
            ctx.set_custom_status(&large);
        }
    }
    Ok(refused.to_string())
}

fn registry() -> OrchestrationRegistry {
    OrchestrationRegistry::builder().register("greedy", greedy).build()
}

fn raise(bench: &mut Bench, data: &str) {
    bench.send(MessageKind::Raise { name: "go".to_owned(), data: data.to_owned() });
}

fn answer_all(bench: &mut Bench) {
    let open: Vec<(u64, bool)> = bench
        .history
        .iter()
        .filter(|event| !bench.history.iter().any(|other| other.source_event_id == Some(event.event_id)))
        .filter_map(|event| match event.kind {
            EventKind::ActivityScheduled { .. } => Some((event.event_id.0, true)),
            EventKind::SubOrchestrationScheduled { .. } => Some((event.event_id.0, false)),
            _ => None,
        })
        .collect();
    for (event, is_activity) in open {
        if is_activity {
            let result = bench.result(event, Ok("")).unwrap();
            bench.turn(vec![result]);
        } else {
            let token = bench.history.iter().find_map(|e| match e.kind {
                EventKind::SubOrchestrationScheduled { token, .. } if e.event_id.0 == event => Some(token),
                _ => None,
            });
            let (execution, event) = (bench.state.execution, outlast_core::EventId(event));
            let result = Ok(String::new());
            bench.send(MessageKind::ChildDone { execution, event, token: token.unwrap(), result });
        }
    }
}

/// Runs the code under `first`, and after its first turn under `then`.
fn run(first: Limits, then: Limits, word: &str) -> Bench {
    let mut bench = Bench::with_limits(registry(), first);
    bench.send(start("greedy", ""));
    bench.limits = then;
    for _ in 0..2 {
        bench.cold();
        raise(&mut bench, word);
        answer_all(&mut bench);
    }
    assert_eq!(check_replay(&bench.handlers, &bench.exported()), Ok(()));
    bench
}

#[test]
fn lowered_limits_change_nothing_for_an_execution_that_runs() {
    let (before, after) = (run(Limits::default(), Limits::default(), ""), run(Limits::default(), low(), ""));
    assert_eq!(after.state.output.as_deref(), Some("0"));
    assert_eq!(after.history, before.history);
}

#[test]
fn raised_limits_change_nothing_where_the_code_has_handled_the_refusal() {
    let (before, after) = (run(low(), low(), "small"), run(low(), Limits::default(), "small"));
    assert_eq!(after.state.output.as_deref(), Some("60"));
    assert_eq!(after.history, before.history);
}

#[test]
fn a_failure_for_a_limit_is_one_whatever_the_limit_is_later() {
    for then in [low(), Limits::default()] {
        let bench = run(low(), then, "");
        assert_eq!(bench.state.status, InstanceStatus::Failed);
        assert!(bench.state.output.as_deref().unwrap().contains("kv_value_bytes_max"), "{:?}", bench.state.output);
    }
}

#[test]
fn an_output_that_is_too_large_is_a_failure_that_replays() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        ctx.schedule_timer(Duration::from_secs(1)).await;
        Ok("x".repeat(100))
    };
    let registry = OrchestrationRegistry::builder().register("large", code).build();
    let mut bench = Bench::with_limits(registry, low());
    bench.send(start("large", ""));
    bench.limits = Limits::default();
    bench.cold();
    bench.now = bench.now.plus(Duration::from_secs(1));
    bench.turn(Vec::new());
    assert!(bench.state.output.as_deref().unwrap().contains("payload_bytes_max"));
    assert_eq!(check_replay(&bench.handlers, &bench.exported()), Ok(()));
}

#[test]
fn the_next_execution_has_the_limits_of_its_time() {
    let code = |ctx: OrchestrationContext, input: String| async move {
        match ctx.continue_as_new("x".repeat(100)).await {
            Err(refused) if input.is_empty() => {
                ctx.schedule_wait("go").await;
                ctx.continue_as_new("again").await.map_err(|_| refused)
            }
            other => other,
        }
    };
    let registry = OrchestrationRegistry::builder().register("next", code).build();
    let mut bench = Bench::with_limits(registry, low());
    bench.send(start("next", ""));
    bench.limits = Limits::default();
    bench.cold();
    raise(&mut bench, "");
    assert_eq!(bench.state.execution.0, 2);
    bench.turn(Vec::new());
    assert_eq!(bench.state.execution.0, 3, "what was refused before is taken now");
}

#[test]
fn a_kv_that_is_full_takes_new_values_of_its_keys() {
    let code = |ctx: OrchestrationContext, input: String| async move {
        if input.is_empty() {
            (0..5).for_each(|key| ctx.set_kv_value(format!("k{key}"), "v"));
            return ctx.continue_as_new("full").await;
        }
        ctx.set_kv_value("k3", "new");
        ctx.schedule_wait("go").await;
        Ok(ctx.get_kv_value("k3").unwrap_or_default())
    };
    let registry = OrchestrationRegistry::builder().register("full", code).build();
    let mut bench = Bench::new(registry);
    bench.limits = low();
    bench.send(start("full", ""));
    // The next execution begins on a node where fewer keys are allowed.
    bench.cold();
    bench.turn(Vec::new());
    raise(&mut bench, "");
    assert_eq!(bench.state.output.as_deref(), Some("new"));
}
