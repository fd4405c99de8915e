//! Versions: the highest is taken, an execution stays on its own, continue-as-new resolves anew.

use outlast::{OrchestrationContext, OrchestrationRegistry, OrchestrationRegistryBuilder, VersionPolicy};

use crate::model::world::{World, activities, options, orchestration};
use crate::place::Place;

async fn version(ctx: OrchestrationContext, input: String) -> Result<String, String> {
    if input == "again" {
        ctx.schedule_wait("go").await;
        return ctx.continue_as_new("last").await;
    }
    Ok(ctx.orchestration_version())
}

fn registry(versions: &[&str]) -> OrchestrationRegistryBuilder {
    versions.iter().fold(OrchestrationRegistry::builder(), |builder, v| builder.register_versioned("Job", v, version))
}

#[tokio::test]
async fn a_start_takes_the_latest_the_exact_or_the_policy() {
    let policy = VersionPolicy::Exact("1.1.0".parse().unwrap());
    let registry = registry(&["1.0.0", "1.1.0", "1.10.0"]).register_versioned("Pinned", "1.1.0", version);
    let registry = registry.register_versioned("Pinned", "2.0.0", version).set_policy("Pinned", policy);
    let world = World::start(activities(), registry).await;
    assert_eq!(world.run("Job", "").await.unwrap(), "1.10.0");
    assert_eq!(world.run("Pinned", "").await.unwrap(), "1.1.0");
    world.client.start_orchestration_versioned("exact", "Job", "1.0.0", "").await.unwrap();
    assert_eq!(world.outcome("exact").await.unwrap(), "1.0.0");
}

#[tokio::test]
async fn an_execution_stays_on_its_version_and_continue_as_new_moves_on() {
    let place = Place::default();
    let provider = place.open().await;
    let world = World::on(provider.clone(), activities(), registry(&["1.0.0"]), options()).await;
    world.client.start_orchestration("i", "Job", "again").await.unwrap();
    world.events("i", 2).await;
    world.runtime.shutdown(None).await;
    let world = World::on(provider, activities(), registry(&["1.0.0", "1.1.0"]), options()).await;
    assert_eq!(world.client.get_instance_info("i").await.unwrap().orchestration_version, "1.0.0");
    world.client.raise_event("i", "go", "").await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), "1.1.0");
}

#[test]
fn errors_of_a_registry_are_all_told() {
    let errors = registry(&["1.0.0", "1.0.0", "one"]).build_result().err().unwrap();
    assert_eq!(errors.len(), 2);
    assert!(errors[1].to_string().contains("\"one\""), "{}", errors[1]);
}

#[tokio::test]
async fn another_text_of_a_custom_status_is_no_other_decision() {
    let place = Place::default();
    let provider = place.open().await;
    let code = |text: &'static str| {
        move |ctx: OrchestrationContext, _: String| async move {
            ctx.set_custom_status(text);
            Ok(ctx.schedule_wait("go").await)
        }
    };
    let first = World::on(provider.clone(), activities(), orchestration("Say", code("old")), options()).await;
    first.client.start_orchestration("i", "Say", "").await.unwrap();
    first.events("i", 3).await;
    first.runtime.shutdown(None).await;
    let second = World::on(provider, activities(), orchestration("Say", code("new")), options()).await;
    second.client.raise_event("i", "go", "done").await.unwrap();
    assert_eq!(second.outcome("i").await.unwrap(), "done");
}
