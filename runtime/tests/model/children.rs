//! Sub-orchestrations and detached ones.

use outlast::{OrchestrationContext, OrchestrationRegistry};

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
