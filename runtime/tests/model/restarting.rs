//! An id that is started again: what its starter is told.

use outlast::{Client, OrchestrationContext, OrchestrationRegistry, StartConflict, StartOptions, StartOutcome};

use crate::model::faulty::{Faults, Faulty};
use crate::model::world::{World, activities, options};
use crate::place::Place;

fn start(instance: &str, orchestration: &str, input: &str) -> StartOptions {
    StartOptions {
        instance: instance.to_owned(),
        orchestration: orchestration.to_owned(),
        input: input.to_owned(),
        ..StartOptions::default()
    }
}

fn registry() -> outlast::OrchestrationRegistryBuilder {
    OrchestrationRegistry::builder()
        .register("Wait", |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("go").await) })
        .register("Loop", |ctx: OrchestrationContext, input: String| async move {
            let left: u32 = input.parse().map_err(|_| "a number".to_owned())?;
            if left == 0 {
                Ok(ctx.schedule_wait("go").await)
            } else {
                ctx.continue_as_new((left - 1).to_string()).await
            }
        })
}

#[tokio::test]
async fn another_input_under_the_same_id_is_told_to_the_starter_and_changes_nothing() {
    let world = World::start(activities(), registry()).await;
    let client = &world.client;
    assert_eq!(client.start_with(start("i", "Wait", "a")).await.unwrap(), StartOutcome::Started);
    assert_eq!(client.start_with(start("i", "Wait", "a")).await.unwrap(), StartOutcome::AlreadyExists);
    let other = StartOutcome::AlreadyExistsWithOtherInput;
    assert_eq!(client.start_with(start("i", "Wait", "b")).await.unwrap(), other);
    world.events("i", 2).await;
    assert_eq!(client.start_with(start("i", "Wait", "a")).await.unwrap(), StartOutcome::AlreadyExists);
    assert_eq!(client.start_with(start("i", "Wait", "b")).await.unwrap(), other);
    client.start_orchestration("i", "Wait", "b").await.unwrap();
    client.raise_event("i", "go", "done").await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), "done");
    assert_eq!(client.start_with(start("i", "Wait", "b")).await.unwrap(), other, "also when it has ended");
}

#[tokio::test]
async fn the_input_that_counts_is_that_of_the_present_life() {
    let world = World::start(activities(), registry()).await;
    let client = &world.client;
    client.start_orchestration("i", "Loop", "3").await.unwrap();
    client.raise_event("i", "early", "").await.unwrap();
    while client.list_executions("i").await.unwrap().len() < 4 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(client.start_with(start("i", "Loop", "3")).await.unwrap(), StartOutcome::AlreadyExists);
    let other = StartOutcome::AlreadyExistsWithOtherInput;
    assert_eq!(
        client.start_with(start("i", "Loop", "0")).await.unwrap(),
        other,
        "it was continued with it, not started"
    );
    let anew = StartOptions { on_conflict: StartConflict::TerminateExisting, ..start("i", "Wait", "new") };
    assert_eq!(client.start_with(anew).await.unwrap(), StartOutcome::Replaced);
    while client.get_instance_info("i").await.unwrap().orchestration_version.is_empty()
        || client.get_instance_info("i").await.unwrap().orchestration_name != "Wait"
    {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(client.start_with(start("i", "Wait", "new")).await.unwrap(), StartOutcome::AlreadyExists);
    assert_eq!(client.start_with(start("i", "Wait", "3")).await.unwrap(), other);
}

#[tokio::test]
async fn a_start_that_begins_while_it_is_compared_is_found_all_the_same() {
    let place = Place::default();
    let (provider, faults) = (place.open().await, Faults::default());
    let slow = Client::new(Faulty::new(&provider, &faults));
    slow.start_orchestration("i", "Wait", "a").await.unwrap();
    // It has found no history yet, and stands before the look into the inbox, which the first turn empties.
    faults.hang("inbox");
    let comparing = tokio::spawn(async move { slow.start_with(start("i", "Wait", "b")).await });
    while faults.waiting("inbox") == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let world = World::on(provider, activities(), registry(), options()).await;
    world.events("i", 2).await;
    faults.heal("inbox");
    assert_eq!(comparing.await.unwrap().unwrap(), StartOutcome::AlreadyExistsWithOtherInput);
    world.client.raise_event("i", "go", "").await.unwrap();
}

#[tokio::test]
async fn a_start_that_nobody_has_begun_yet_is_compared_too() {
    let place = Place::default();
    let client = Client::new(place.open().await);
    client.start_orchestration("i", "Wait", "a").await.unwrap();
    assert_eq!(client.start_with(start("i", "Wait", "a")).await.unwrap(), StartOutcome::AlreadyExists);
    let other = StartOutcome::AlreadyExistsWithOtherInput;
    assert_eq!(client.start_with(start("i", "Wait", "b")).await.unwrap(), other);
    let world = World::on(place.open().await, activities(), registry(), options()).await;
    world.client.raise_event("i", "go", "").await.unwrap();
}
