//! Sub-orchestrations and detached ones.

use outlast::{EventKind, OrchestrationContext, OrchestrationRegistry};

use crate::model::world::{World, activities, orchestration};

fn registry() -> outlast::OrchestrationRegistryBuilder {
    OrchestrationRegistry::builder()
        .register("Child", |ctx: OrchestrationContext, input: String| async move {
            if input == "bad" {
                Err("bad child".to_owned())
            } else {
                ctx.schedule_activity("Echo", format!("<{input}>")).await
            }
        })
        .register("Parent", |ctx: OrchestrationContext, _: String| async move {
            let good = ctx.schedule_sub_orchestration("Child", "good");
            let bad = ctx.schedule_sub_orchestration("Child", "bad");
            let (good, bad) = ctx.join2(good, bad).await;
            Ok(format!("{} {}", good?, bad.unwrap_err()))
        })
        .register("Many", |ctx: OrchestrationContext, _: String| async move {
            let children = (0..50).map(|n| ctx.schedule_sub_orchestration("Child", n.to_string())).collect();
            let results = ctx.join(children).await;
            Ok(results.into_iter().filter(Result::is_ok).count().to_string())
        })
        .register("Taken", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_sub_orchestration_with_id("Child", "Taken-1", "x").await
        })
        .register("Detach", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_orchestration("Child", "on-its-own", "free");
            Ok("started".to_owned())
        })
}

#[tokio::test]
async fn a_parent_gets_the_outcome_of_each_child() {
    let world = World::start(activities(), registry()).await;
    assert_eq!(world.run("Parent", "").await.unwrap(), "<good> bad child");
    let tree = world.client.get_instance_tree("Parent-1").await.unwrap();
    assert_eq!(tree.all_ids, ["Parent-1", "Parent-1::sub::2", "Parent-1::sub::3"]);
}

#[tokio::test]
async fn fifty_children_are_joined() {
    let world = World::start(activities(), registry()).await;
    assert_eq!(world.run("Many", "").await.unwrap(), "50");
}

#[tokio::test]
async fn a_child_id_that_is_taken_is_an_error_for_the_parent() {
    let world = World::start(activities(), registry()).await;
    let details = world.run("Taken", "").await.unwrap_err();
    assert!(details.display_message().contains("is taken"), "{}", details.display_message());
}

#[tokio::test]
async fn a_child_that_is_dropped_in_its_scheduling_turn_ends_as_cancelled() {
    let registry = OrchestrationRegistry::builder()
        .register("Quick", |_: OrchestrationContext, _: String| async move { Ok("it ran".to_owned()) })
        .register("Dropping", |ctx: OrchestrationContext, _: String| async move {
            drop(ctx.schedule_sub_orchestration("Quick", ""));
            drop(ctx.schedule_sub_orchestration_with_id("Quick", "chosen", ""));
            ctx.schedule_wait("go").await;
            Ok("went on".to_owned())
        });
    let world = World::start(activities(), registry).await;
    world.client.start_orchestration("i", "Dropping", "").await.unwrap();
    for child in ["i::sub::2", "chosen"] {
        world.events("i", 6).await;
        let details = world.outcome(child).await.unwrap_err();
        assert_eq!(details.display_message(), "canceled: dropped by the orchestration", "{child}");
    }
    world.client.raise_event("i", "go", "").await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), "went on");
    let history = world.client.read_execution_history("i", 1).await.unwrap();
    let count = |wanted: fn(&EventKind) -> bool| history.iter().filter(|event| wanted(&event.kind)).count();
    assert_eq!(count(|kind| matches!(kind, EventKind::SubOrchestrationScheduled { .. })), 2);
    assert_eq!(count(|kind| matches!(kind, EventKind::SubOrchestrationCancelRequested { .. })), 2);
}

#[tokio::test]
async fn ids_that_clients_could_not_use_are_refused_and_nothing_is_recorded() {
    let registry = OrchestrationRegistry::builder()
        .register("Detached", |ctx: OrchestrationContext, id: String| async move {
            ctx.schedule_orchestration("Detached", id, "");
            ctx.schedule_wait("never").await;
            Ok(String::new())
        })
        .register("Explicit", |ctx: OrchestrationContext, id: String| async move {
            ctx.schedule_sub_orchestration_with_id("Detached", id, "").await
        })
        .register("Deep", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_sub_orchestration("Deep", "").await
        });
    let world = World::start(activities(), registry).await;
    for orchestration in ["Detached", "Explicit"] {
        world.client.start_orchestration(orchestration, orchestration, "sub::a").await.unwrap();
        let details = world.outcome(orchestration).await.unwrap_err();
        assert!(details.display_message().contains("reserved"), "{}", details.display_message());
        let history = world.client.read_execution_history(orchestration, 1).await.unwrap();
        let starts = |kind: &EventKind| {
            matches!(kind, EventKind::OrchestrationChained { .. } | EventKind::SubOrchestrationScheduled { .. })
        };
        assert!(!history.iter().any(|event| starts(&event.kind)), "{history:?}");
    }
    // Every child that runs has an id that a client can name; the first that would not is an error of its parent.
    let root = "r".repeat(480);
    world.client.start_orchestration(&root, "Deep", "").await.unwrap();
    let details = world.outcome(&root).await.unwrap_err();
    assert!(details.display_message().contains("name_bytes_max"), "{}", details.display_message());
    let tree = world.client.get_instance_tree(&root).await.unwrap();
    assert!(tree.all_ids.len() > 2, "{:?}", tree.all_ids);
    for id in &tree.all_ids {
        world.client.cancel_instance(id, "it has ended").await.unwrap();
    }
}

#[tokio::test]
async fn a_detached_start_lives_on_its_own() {
    let world = World::start(activities(), registry()).await;
    assert_eq!(world.run("Detach", "").await.unwrap(), "started");
    assert_eq!(world.outcome("on-its-own").await.unwrap(), "<free>");
}

#[tokio::test]
async fn a_parent_is_told_of_a_child_that_nobody_has_registered() {
    let code = |ctx: OrchestrationContext, _: String| async move { ctx.schedule_sub_orchestration("nope", "").await };
    let options = outlast::RuntimeOptions { max_attempts: 3, ..crate::model::world::options() };
    let world = World::start_with(activities(), orchestration("Parent", code), options).await;
    let details = world.run("Parent", "").await.unwrap_err();
    assert!(
        matches!(&details, outlast::ErrorDetails::Poison { message_type, .. } if message_type.contains("nope")),
        "{details:?}"
    );
}

#[tokio::test]
async fn a_parent_that_panics_takes_its_children_along() {
    let registry = OrchestrationRegistry::builder()
        .register("Parent", |ctx: OrchestrationContext, _: String| async move {
            let _kid = ctx.schedule_sub_orchestration_with_id("Kid", "kid", "");
            ctx.schedule_wait("go").await;
            panic!("on purpose")
        })
        .register("Kid", |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("never").await) });
    let world = World::start(activities(), registry).await;
    world.client.start_orchestration("p", "Parent", "").await.unwrap();
    world.events("p", 3).await;
    world.events("kid", 2).await;
    world.client.raise_event("p", "go", "").await.unwrap();
    assert!(world.outcome("p").await.unwrap_err().display_message().contains("on purpose"));
    assert!(world.outcome("kid").await.unwrap_err().display_message().starts_with("canceled: "));
}

#[tokio::test]
async fn a_detached_start_cannot_take_the_id_of_a_future_child() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        ctx.schedule_orchestration("Parent", "x::sub::2", "");
        Ok(String::new())
    };
    let world = World::start(activities(), orchestration("Parent", code)).await;
    assert!(world.run("Parent", "").await.unwrap_err().display_message().contains("reserved"));
}
