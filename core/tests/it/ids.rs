//! Ids that code chooses for other instances, and those that are made for its children.

use outlast_core::{EventKind, InstanceStatus, OrchestrationContext, OrchestrationRegistry, Rules, check_replay};

use crate::harness::{Bench, start};

/// Starts what its input names, as a child or on its own, and goes on.
fn registry() -> OrchestrationRegistry {
    OrchestrationRegistry::builder()
        .register("child", |ctx: OrchestrationContext, id: String| async move {
            let child = match id.as_str() {
                "" => ctx.schedule_sub_orchestration("other", ""),
                id => ctx.schedule_sub_orchestration_with_id("other", id, ""),
            };
            child.await
        })
        .register("detached", |ctx: OrchestrationContext, id: String| async move {
            ctx.schedule_orchestration("other", id, "");
            ctx.schedule_wait("go").await;
            Ok(String::new())
        })
        .build()
}

fn run(own: &str, orchestration: &str, id: &str) -> Bench {
    let mut bench = Bench::new(registry());
    own.clone_into(&mut bench.id);
    bench.cold();
    let turn = bench.send(start(orchestration, id));
    let others = |kind: &EventKind| {
        matches!(kind, EventKind::SubOrchestrationScheduled { .. } | EventKind::OrchestrationChained { .. })
    };
    let recorded = bench.history.iter().any(|event| others(&event.kind));
    assert_eq!(recorded, bench.state.status == InstanceStatus::Running, "what is refused is not recorded");
    assert_eq!(recorded, !turn.outbound.is_empty());
    bench
}

#[test]
fn ids_that_clients_could_not_choose_are_refused() {
    for orchestration in ["child", "detached"] {
        for id in ["sub::a", "sub::2", "sub::", "x::sub::a", "x::sub::2", "i::sub::a", "i::sub::2", "j::sub::2-x"] {
            let bench = run("i", orchestration, id);
            let output = bench.state.output.unwrap_or_default();
            assert!(output.contains("reserved for child instances"), "{orchestration} {id}: {output}");
        }
    }
}

#[test]
fn code_may_build_on_its_own_id_and_those_above_it() {
    let own = "root::sub::2::sub::1_7";
    let fine = ["other", "root-x", "root::sub::2-x", "root::sub::2::sub::1_7/part", "root::sub::2::sub::1_7::x"];
    for id in fine {
        run(own, "child", id);
        run(own, "detached", id);
    }
    for id in ["root::sub::3", "root::sub::20", "root::sub::2::sub::1_70", "root::sub::2::sub::1_7::sub::a"] {
        assert_eq!(run(own, "child", id).state.status, InstanceStatus::Failed, "{id}");
    }
}

#[test]
fn a_child_whose_id_no_client_could_name_is_refused_when_it_is_scheduled() {
    let own = "r".repeat(505);
    let bench = run(&own, "child", "");
    let output = bench.state.output.unwrap_or_default();
    assert!(output.contains("name_bytes_max") && output.contains("schedule_sub_orchestration_with_id"), "{output}");
    let fits = run(&"r".repeat(504), "child", "");
    assert_eq!(fits.state.status, InstanceStatus::Running);
}

#[test]
fn a_history_from_before_keeps_the_ids_that_were_taken_then() {
    let mut bench = Bench::new(registry());
    bench.send(start("child", "other"));
    let EventKind::OrchestrationStarted { rules, limits, input, .. } = &mut bench.history[0].kind else {
        panic!("a history begins with a start")
    };
    (*rules, *limits, *input) = (Rules::default(), None, "sub::a".to_owned());
    let EventKind::SubOrchestrationScheduled { instance, .. } = &mut bench.history[1].kind else {
        panic!("a child was scheduled")
    };
    "sub::a".clone_into(instance);
    bench.cold();
    bench.turn(Vec::new());
    assert_eq!(bench.state.status, InstanceStatus::Running, "{:?}", bench.state.output);
    assert_eq!(check_replay(&bench.handlers, &bench.exported()), Ok(()));
}

/// Codes of old histories have put such ids into inputs and names, and replay compares those.
#[test]
fn ids_that_code_draws_stay_what_they_were() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        Ok(format!("{} {}", ctx.new_guid().await?, ctx.new_guid().await?))
    };
    let mut bench = Bench::new(OrchestrationRegistry::builder().register("Draw", code).build());
    bench.send(start("Draw", ""));
    assert_eq!(
        bench.state.output.as_deref(),
        Some("aeda62c5-6454-4e9e-bffe-681096ec0a37 a5fda6ff-2593-48b8-855e-c8fe7e7006b8")
    );
}
