//! Key-value state and custom status.

use std::time::Duration;

use outlast::{OrchestrationContext, OrchestrationRegistry, OrchestrationStatus};

use crate::model::world::{SOON, World, activities, orchestration};

#[tokio::test]
async fn values_and_status_survive_continue_as_new_and_the_end() {
    let code = |ctx: OrchestrationContext, input: String| async move {
        if input == "first" {
            ctx.set_kv_value("kept", "yes");
            ctx.set_kv_value("dropped", "no");
            ctx.set_custom_status("half");
            return ctx.continue_as_new("second").await;
        }
        ctx.clear_kv_value("dropped");
        ctx.set_kv_value_typed("number", &42);
        let number: Option<i32> = ctx.get_kv_value_typed("number")?;
        Ok(format!("{:?} {:?} {:?}", ctx.get_kv_value("kept"), number, ctx.get_custom_status()))
    };
    let world = World::start(activities(), orchestration("State", code)).await;
    assert_eq!(world.run("State", "first").await.unwrap(), "Some(\"yes\") Some(42) Some(\"half\")");
    let values = world.client.get_kv_all_values("State-1").await.unwrap();
    assert_eq!(values.len(), 2);
    assert_eq!(values["kept"], "yes");
    let status = world.client.get_orchestration_status("State-1").await.unwrap();
    assert!(
        matches!(status, OrchestrationStatus::Completed { custom_status: Some(s), custom_status_version: 1, .. } if s == "half")
    );
}

#[tokio::test]
async fn a_value_of_another_instance_is_read_from_the_store() {
    let registry = OrchestrationRegistry::builder()
        .register("Writer", |ctx: OrchestrationContext, _: String| async move {
            ctx.set_kv_value("word", "\"quoted\"");
            ctx.schedule_wait("end").await;
            Ok(String::new())
        })
        .register("Reader", |ctx: OrchestrationContext, _: String| async move {
            let found = ctx.get_kv_value_from_instance("w", "word").await?;
            let missing = ctx.get_kv_value_from_instance("w", "none").await?;
            let typed: Option<String> = ctx.get_kv_value_from_instance_typed("w", "word").await?;
            Ok(format!("{found:?} {missing:?} {typed:?}"))
        });
    let world = World::start(activities(), registry).await;
    world.client.start_orchestration("w", "Writer", "").await.unwrap();
    assert_eq!(world.client.wait_for_kv_value("w", "word", SOON).await.unwrap(), "\"quoted\"");
    assert_eq!(world.run("Reader", "").await.unwrap(), "Some(\"\\\"quoted\\\"\") None Some(\"quoted\")");
}

#[tokio::test]
async fn a_status_change_is_pushed() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        for step in 1..=3 {
            ctx.set_custom_status(step.to_string());
            ctx.schedule_wait("next").await;
        }
        Ok("done".to_owned())
    };
    let world = World::start(activities(), orchestration("Steps", code)).await;
    world.client.start_orchestration("i", "Steps", "").await.unwrap();
    let mut seen = Vec::new();
    let mut version = 0;
    while let OrchestrationStatus::Running { custom_status, custom_status_version, .. } =
        world.client.wait_for_status_change("i", version, Duration::from_secs(60), SOON).await.unwrap()
    {
        version = custom_status_version;
        seen.extend(custom_status);
        world.client.raise_event("i", "next", "").await.unwrap();
    }
    assert_eq!(seen, ["1", "2", "3"]);
}

#[tokio::test]
async fn texts_may_hold_every_character() {
    const TEXT: &str = "a\0b\u{10FFFF}c";
    let registry = OrchestrationRegistry::builder()
        .register("Echo", |ctx: OrchestrationContext, input: String| async move {
            ctx.set_kv_value("key", input.clone());
            ctx.set_custom_status(input.clone());
            ctx.schedule_activity("Echo", input).await
        })
        .register("Parent", |ctx: OrchestrationContext, input: String| async move {
            let nobody = ctx.get_kv_value_from_instance(input.clone(), "key").await?;
            if nobody.is_some() {
                return Err("nobody has this id".to_owned());
            }
            let output = ctx.schedule_sub_orchestration_with_id("Echo", "child", input).await?;
            let kept = ctx.get_kv_value_from_instance("child", "key").await?;
            if kept.as_ref() == Some(&output) { Ok(output) } else { Err(format!("{kept:?}")) }
        });
    let world = World::start(activities(), registry).await;
    assert_eq!(world.run("Parent", TEXT).await.unwrap(), TEXT);
    let status = world.client.get_orchestration_status("child").await.unwrap();
    assert!(
        matches!(&status, OrchestrationStatus::Completed { output, custom_status: Some(s), .. } if output == TEXT && s == TEXT),
        "{status:?}"
    );
    // An id that nobody can have is one that nobody has.
    assert!(matches!(world.client.get_orchestration_status(TEXT).await.unwrap(), OrchestrationStatus::NotFound));
    assert!(world.client.delete_instance(TEXT, true).await.is_err());
}
