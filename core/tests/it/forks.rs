//! Instances that begin as a copy of another one's history.

use std::time::Duration;

use outlast_core::{
    EventKind, ForkError, InstanceStatus, Limits, MessageKind, OrchestrationContext, OrchestrationRegistry,
    check_replay,
};

use crate::harness::{Bench, start};

fn job<F, Fut>(code: F) -> OrchestrationRegistry
where
    F: Fn(OrchestrationContext, String) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<String, String>> + Send + 'static,
{
    OrchestrationRegistry::builder().register("job", code).build()
}

/// An instance whose code waits for `go`, after that.
fn after_go(registry: OrchestrationRegistry) -> Bench {
    let mut bench = Bench::new(registry);
    bench.send(start("job", ""));
    raise(&mut bench);
    bench
}

fn raise(bench: &mut Bench) {
    bench.send(MessageKind::Raise { name: "go".to_owned(), data: String::new() });
}

#[track_caller]
fn fork(bench: &Bench, at: u64) -> Bench {
    let mut fork = bench.fork(at, "f", 7).unwrap_or_else(|error| panic!("{error}"));
    fork.cold();
    fork.turn(Vec::new());
    assert_ne!(
        fork.state.output.as_deref().map(|text| text.contains("Nondeterminism")),
        Some(true),
        "{:?}",
        fork.state
    );
    if fork.state.execution.0 == 1 {
        assert_eq!(check_replay(&fork.handlers, &fork.exported()), Ok(()));
    }
    fork
}

#[track_caller]
fn refused(bench: &Bench, at: u64) -> ForkError {
    bench.fork(at, "f", 7).err().expect("no fork there")
}

#[test]
fn a_fork_at_the_event_before_the_end_ends_as_the_unchanged_code_does() {
    let returns = |ctx: OrchestrationContext, _: String| async move {
        let kept = ctx.schedule_activity("A", "");
        ctx.schedule_wait("go").await;
        ctx.set_kv_value("k", "v");
        drop(kept);
        Ok("returned".to_owned())
    };
    let fails = |ctx: OrchestrationContext, _: String| async move {
        let _kept = ctx.schedule_activity("A", "");
        ctx.schedule_wait("go").await;
        Err("failed".to_owned())
    };
    let panics = |ctx: OrchestrationContext, _: String| async move {
        let _kept = ctx.schedule_activity("A", "");
        ctx.schedule_wait("go").await;
        panic!("panicked")
    };
    let forgets = |ctx: OrchestrationContext, _: String| async move {
        std::mem::forget(ctx.schedule_activity("A", ""));
        ctx.schedule_wait("go").await;
        Ok("forgot".to_owned())
    };
    for registry in [job(returns), job(fails), job(panics), job(forgets)] {
        let bench = after_go(registry);
        assert_eq!(check_replay(&bench.handlers, &bench.exported()), Ok(()));
        let last = bench.history.len() as u64;
        let error = refused(&bench, last);
        assert_eq!(error.nearest.map(|id| id.0), Some(last - 1), "{error}");
        let fork = fork(&bench, last - 1);
        assert_eq!((fork.state.status, &fork.state.output), (bench.state.status, &bench.state.output));
        let kinds = |bench: &Bench| bench.history.iter().skip(1).map(|event| event.kind.clone()).collect::<Vec<_>>();
        assert_eq!(kinds(&fork), kinds(&bench));
    }
}

#[test]
fn a_fork_before_continue_as_new_continues_as_new() {
    let bench = job(|ctx: OrchestrationContext, input: String| async move {
        if !input.is_empty() {
            return Ok(input);
        }
        let _kept = ctx.schedule_activity("A", "");
        ctx.schedule_wait("go").await;
        ctx.continue_as_new("next").await
    });
    let mut bench = Bench::new(bench);
    bench.send(start("job", ""));
    let first = bench.exported();
    let mut before = Bench::new(bench.handlers.clone());
    before.send(start("job", ""));
    raise(&mut bench);
    bench.turn(Vec::new());
    assert_eq!(bench.state.output.as_deref(), Some("next"));
    assert_eq!(first.len(), 3);
    // The fork gets the event that ends its first execution by itself.
    let mut fork = fork(&before, 3);
    raise(&mut fork);
    fork.turn(Vec::new());
    assert_eq!((fork.state.execution.0, fork.state.output.as_deref()), (2, Some("next")));
}

#[test]
fn an_execution_that_ended_with_open_activities_follows_its_history() {
    let code = |ctx: OrchestrationContext, input: String| async move {
        let kept = ctx.schedule_activity("A", "");
        ctx.schedule_wait("go").await;
        if input.is_empty() {
            return ctx.continue_as_new("next").await;
        }
        std::mem::forget(kept);
        Ok(input)
    };
    let mut bench = Bench::new(job(code));
    bench.send(start("job", ""));
    let mut first = bench.history.clone();
    let incoming = bench.row(MessageKind::Raise { name: "go".to_owned(), data: String::new() });
    let turn = bench.turn(vec![incoming]);
    first.extend(turn.events.iter().filter(|(execution, _)| execution.0 == 1).map(|(_, event)| event.clone()));
    assert!(first.iter().any(|event| matches!(event.kind, EventKind::ActivityCancelRequested { .. })));
    let mut ended = Bench::new(bench.handlers.clone());
    ended.history = first;
    assert_eq!(check_replay(&ended.handlers, &ended.exported()), Ok(()));
    let fork = fork(&ended, ended.history.len() as u64 - 1);
    assert_eq!(fork.state.execution.0, 2, "it continued as new as well");
}

#[test]
fn a_refused_fork_names_an_event_that_works() {
    let bench = after_go(job(|ctx: OrchestrationContext, _: String| async move {
        ctx.set_kv_value("k", "v");
        ctx.schedule_wait("go").await;
        Ok(String::new())
    }));
    for (at, nearest) in [(0, 3), (1, 3), (2, 3), (5, 4), (6, 4), (u64::MAX, 4)] {
        let error = refused(&bench, at);
        assert_eq!(error.nearest.map(|id| id.0), Some(nearest), "{error}");
        fork(&bench, nearest);
    }
    assert!(refused(&bench, 1).to_string().contains("the nearest event that allows it is 3"));
}

#[test]
fn an_instance_that_was_cancelled_is_forked_before_its_cancel() {
    let mut bench = Bench::new(crate::orchestrations::registry());
    bench.send(start("chain", "x"));
    bench.send(MessageKind::Cancel { child: None, reason: "enough".to_owned() });
    for at in 3..=bench.history.len() as u64 {
        assert_eq!(refused(&bench, at).nearest.map(|id| id.0), Some(2));
    }
    let mut fork = fork(&bench, 2);
    for event in [2, 4] {
        let result = fork.result(event, Ok("done")).unwrap();
        fork.turn(vec![result]);
    }
    assert_eq!(fork.state.status, InstanceStatus::Completed);
}

#[test]
fn the_copied_part_is_told_what_its_origin_was_and_the_rest_what_the_fork_is() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let mut said = Vec::new();
        for round in 0..4 {
            let guid = ctx.new_guid().await?;
            let own = format!("{}/{}", ctx.instance_id(), ctx.execution_id());
            ctx.set_kv_value(format!("k{round}"), format!("{own} {guid}"));
            said.push(format!("{own} {guid}"));
            ctx.schedule_wait("go").await;
        }
        said.push(ctx.new_guid().await?);
        Ok(said.join(","))
    };
    let finish = |bench: &mut Bench| {
        while bench.state.status == InstanceStatus::Running {
            bench.cold();
            raise(bench);
        }
        assert_eq!(check_replay(&bench.handlers, &bench.exported()), Ok(()));
        let output = bench.state.output.clone().unwrap();
        output.split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    let mut origin = after_go(job(code));
    // At the command that the copy ends with: what was drawn before it belongs to the origin.
    let mut first = origin.fork(6, "f", 7).unwrap();
    let mut second = origin.fork(6, "f", 8).unwrap();
    raise(&mut first);
    let mut of_fork = first.fork(first.history.len() as u64, "g", 9).unwrap();
    let mut shorter = first.fork(3, "h", 10).unwrap();
    // At an outcome: the poll that follows it is the fork's own.
    raise(&mut origin);
    let mut at_outcome = origin.fork(4, "o", 11).err();
    assert_eq!(at_outcome.take().and_then(|error| error.nearest).map(|id| id.0), Some(3));
    let said = [&mut origin, &mut first, &mut second, &mut of_fork, &mut shorter].map(finish);
    let [origin, first, second, of_fork, shorter] = said;
    assert_eq!(first[..2], origin[..2]);
    assert_eq!(of_fork[..3], first[..3]);
    assert_eq!(shorter[..1], origin[..1]);
    for (said, id) in [(&first[2..], "f"), (&second[2..], "f"), (&of_fork[3..], "g"), (&shorter[1..], "h")] {
        assert!(said[..said.len() - 1].iter().all(|own| own.starts_with(&format!("{id}/1 "))), "{said:?}");
    }
    let mut drawn: Vec<&str> = [&origin[..], &first[2..], &second[2..], &of_fork[3..], &shorter[1..]]
        .concat()
        .iter()
        .map(|text| text.rsplit(' ').next().unwrap().to_owned())
        .collect::<Vec<_>>()
        .leak()
        .iter()
        .map(String::as_str)
        .collect();
    let count = drawn.len();
    drawn.sort_unstable();
    drawn.dedup();
    assert_eq!(drawn.len(), count, "no two instances draw the same");
}

#[test]
fn a_fork_at_an_outcome_draws_its_own_ids_from_there_on() {
    let bench = after_go(job(|ctx: OrchestrationContext, _: String| async move {
        ctx.schedule_wait("go").await;
        ctx.new_guid().await
    }));
    let fork = fork(&bench, 3);
    assert_eq!(fork.state.status, InstanceStatus::Completed);
    assert_ne!(fork.state.output, bench.state.output);
}

#[test]
fn a_history_with_ended_children_is_forked() {
    let mut bench = Bench::new(job(|ctx: OrchestrationContext, _: String| async move {
        let first = ctx.schedule_sub_orchestration("child", "x").await?;
        ctx.schedule_wait("go").await;
        ctx.schedule_sub_orchestration("child", first).await
    }));
    bench.send(start("job", ""));
    let token = |bench: &Bench, event| {
        bench.history.iter().find_map(|e| match e.kind {
            EventKind::SubOrchestrationScheduled { token, .. } if e.event_id.0 == event => Some(token),
            _ => None,
        })
    };
    assert_eq!(refused(&bench, 2).nearest, None);
    let (execution, event) = (bench.state.execution, outlast_core::EventId(2));
    let token = token(&bench, 2).unwrap();
    bench.send(MessageKind::ChildDone { execution, event, token, result: Ok("y".to_owned()) });
    let mut fork = fork(&bench, 4);
    raise(&mut fork);
    let scheduled = fork.history.iter().rev().find_map(|event| match &event.kind {
        EventKind::SubOrchestrationScheduled { instance, .. } => Some(instance.as_str()),
        _ => None,
    });
    assert_eq!(scheduled, Some("f::sub::6"));
}

#[test]
fn the_nearest_event_of_a_long_history_is_found_at_once() {
    let limits = Limits { commands_per_turn_max: 100_000, ..Limits::default() };
    let mut bench = Bench::with_limits(
        job(|ctx: OrchestrationContext, _: String| async move {
            let _child = ctx.schedule_sub_orchestration("child", "x");
            (0..50_000).for_each(|n| ctx.set_custom_status(n.to_string()));
            ctx.schedule_timer(Duration::from_secs(1)).await;
            Ok(String::new())
        }),
        limits,
    );
    bench.send(start("job", ""));
    assert_eq!(refused(&bench, 50_003).nearest, None, "a child is outstanding all the time");
}
