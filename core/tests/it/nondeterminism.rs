//! Code that does not follow its history.

use outlast_core::{
    ErrorDetails, InstanceStatus, Limits, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus,
    ReplayDifference, check_replay,
};

use crate::harness::{Bench, start};

fn first_version() -> OrchestrationRegistry {
    OrchestrationRegistry::builder()
        .register("job", |ctx: OrchestrationContext, input: String| async move {
            let a = ctx.schedule_activity("A", input).await?;
            ctx.schedule_activity("B", a).await
        })
        .build()
}

fn changed_version() -> OrchestrationRegistry {
    OrchestrationRegistry::builder()
        .register("job", |ctx: OrchestrationContext, input: String| async move {
            ctx.schedule_activity("A", input).with_tag("gpu").await
        })
        .build()
}

fn message(bench: &Bench) -> String {
    match bench.state.to_status() {
        OrchestrationStatus::Failed { details: details @ ErrorDetails::Configuration { .. }, .. } => {
            details.display_message()
        }
        other => panic!("expected a configuration failure, got {other:?}"),
    }
}

#[test]
fn a_changed_command_fails_with_expected_and_actual() {
    let mut bench = Bench::new(first_version());
    bench.send(start("job", "x"));
    bench.handlers = changed_version();
    bench.cold();
    bench.turn(Vec::new());
    let text = message(&bench);
    assert!(text.contains("tag None") && text.contains("Some(\"gpu\")"), "{text}");
    assert!(text.contains("event 2"), "{text}");
}

#[test]
fn what_differs_is_told_by_length_and_digest_unless_data_may_be_shown() {
    let code = |secret: &'static str| {
        OrchestrationRegistry::builder()
            .register("job", move |ctx: OrchestrationContext, _: String| async move {
                ctx.set_kv_value("k", secret);
                ctx.schedule_activity("A", secret).await
            })
            .build()
    };
    for shown in [false, true] {
        let mut bench = Bench::new(code("a secret"));
        bench.send(start("job", "x"));
        bench.handlers = code("another secret");
        bench.cold();
        if shown {
            bench.warm.show_data_in_errors();
        }
        bench.turn(Vec::new());
        let text = message(&bench);
        assert!(text.contains("event 2") && text.contains("KV \"k\""), "{text}");
        assert_eq!(text.contains("a secret") && text.contains("another secret"), shown, "{text}");
        assert_eq!(text.contains("of 8 bytes, digest ") && text.contains("of 14 bytes, digest "), !shown, "{text}");
    }
}

#[test]
fn an_early_end_is_told_without_what_the_code_said() {
    let mut bench = Bench::new(first_version());
    bench.send(start("job", "x"));
    let failing = |_: OrchestrationContext, _: String| async move { panic!("a secret") };
    bench.handlers = OrchestrationRegistry::builder().register("job", failing).build();
    bench.cold();
    bench.turn(Vec::new());
    let text = message(&bench);
    assert!(text.contains("it failed") && !text.contains("secret"), "{text}");
}

#[test]
fn code_that_ends_while_history_remains_is_caught() {
    let mut bench = Bench::new(first_version());
    bench.send(start("job", "x"));
    let result = bench.result(2, Ok("a")).unwrap();
    bench.turn(vec![result]);
    let shorter = OrchestrationRegistry::builder()
        .register(
            "job",
            |ctx: OrchestrationContext, input: String| async move { ctx.schedule_activity("A", input).await },
        )
        .build();
    bench.handlers = shorter;
    bench.cold();
    bench.turn(Vec::new());
    assert!(message(&bench).contains("activity \"B\""));
}

#[test]
fn a_runaway_turn_is_stopped_from_inside() {
    let endless = OrchestrationRegistry::builder()
        .register("job", |ctx: OrchestrationContext, _: String| async move {
            let mut kept = Vec::new();
            loop {
                kept.push(ctx.schedule_activity("A", "x"));
            }
        })
        .build();
    let limits = Limits { commands_per_turn_max: 100, ..Limits::default() };
    let mut bench = Bench::with_limits(endless, limits);
    let turn = bench.send(start("job", "x"));
    assert!(bench.state.output.as_deref().unwrap().contains("commands_per_turn_max"));
    assert!(turn.effects.is_empty(), "nothing of a failed turn is dispatched");
}

#[test]
fn breaking_a_kv_limit_fails_the_instance() {
    let mut bench = Bench::new(crate::orchestrations::registry());
    bench.send(start("greedy", "x"));
    assert_eq!(bench.state.status, InstanceStatus::Failed);
    assert!(bench.state.output.as_deref().unwrap().contains("kv_keys_max"));
}

#[test]
fn a_replay_check_shows_the_first_difference_of_an_exported_history() {
    let mut bench = Bench::new(first_version());
    bench.send(start("job", "x"));
    for (event, result) in [(2, "a"), (4, "b")] {
        let result = bench.result(event, Ok(result)).unwrap();
        bench.turn(vec![result]);
    }
    let json = serde_json::to_string(&bench.exported()).unwrap();
    let events: Vec<outlast_core::Event> = serde_json::from_str(&json).unwrap();
    assert_eq!(check_replay(&first_version(), &events), Ok(()));
    let Err(ReplayDifference::At { event_id, .. }) = check_replay(&changed_version(), &events) else {
        panic!("a changed command must be found");
    };
    assert_eq!(event_id, 2);
}
