//! Whatever stands still without waiting for something that its code has asked for is listed, with the reason, while it lasts.

use std::sync::Arc;
use std::time::Duration;

use outlast::{
    ActivityContext, ActivityRegistryBuilder, Client, OrchestrationContext, OrchestrationRegistry, Problem,
    RuntimeOptions,
};
use tokio::sync::Semaphore;

use crate::model::faulty::{Faults, Faulty};
use crate::model::world::{SOON, World, activities, options, orchestration};
use crate::place::Place;

/// After this time whatever stands still would be listed, if it were a problem.
const LASTING: Duration = Duration::from_secs(6);

/// Waits until a problem with these words is listed.
async fn listed(client: &Client, words: &str) -> Problem {
    let found = async {
        loop {
            let problems = client.list_problems().await.unwrap();
            if let Some(problem) = problems.into_iter().find(|problem| problem.reason.contains(words)) {
                return problem;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, found).await.unwrap_or_else(|_| panic!("{words:?} is not listed"))
}

async fn nothing_is_listed(client: &Client) {
    let empty = async {
        while !client.list_problems().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, empty).await.expect("what is over is listed no more");
}

#[tokio::test]
async fn starts_that_no_node_has_an_orchestration_for_are_listed_with_and_without_nodes() {
    let place = Place::default();
    let provider = place.open().await;
    let client = Client::new(provider.clone());
    client.start_orchestration("i", "Any", "").await.unwrap();
    let problem = listed(&client, "no live node has any orchestration").await;
    assert_eq!((problem.instance_id.as_str(), problem.orchestration.as_str(), problem.waiting), ("i", "Any", 1));
    let worker = World::on(provider.clone(), activities(), OrchestrationRegistry::builder(), options()).await;
    client.start_orchestration("j", "Any", "").await.unwrap();
    let both = async {
        while listed(&client, "no live node has any orchestration").await.waiting < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, both).await.expect("both are counted");
    let code = |_: OrchestrationContext, _: String| async move { Ok("went".to_owned()) };
    let world = World::on(provider, activities(), orchestration("Any", code), options()).await;
    for id in ["i", "j"] {
        assert_eq!(world.outcome(id).await.unwrap(), "went");
    }
    nothing_is_listed(&client).await;
    worker.runtime.shutdown(None).await;
    world.runtime.shutdown(None).await;
}

#[tokio::test]
async fn a_paused_instance_is_listed_until_it_goes_on() {
    let code = |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("go").await) };
    let world = World::start(activities(), orchestration("Wait", code)).await;
    world.client.start_orchestration("i", "Wait", "").await.unwrap();
    world.client.pause_instance("i").await.unwrap();
    assert_eq!(listed(&world.client, "paused").await.instance_id, "i");
    world.client.resume_instance("i").await.unwrap();
    world.client.raise_event("i", "go", "went").await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), "went");
    nothing_is_listed(&world.client).await;
}

/// An activity that waits until it is let through.
fn gate() -> (Arc<Semaphore>, ActivityRegistryBuilder) {
    let open = Arc::new(Semaphore::new(0));
    let inside = Arc::clone(&open);
    let pass = move |_: ActivityContext, input: String| {
        let open = Arc::clone(&inside);
        async move {
            drop(open.acquire().await.map_err(|error| error.to_string())?);
            Ok(input)
        }
    };
    (open, activities().register("Pass", pass))
}

#[tokio::test]
async fn two_instances_whose_reason_is_the_same_are_counted_together() {
    let code = |ctx: OrchestrationContext, input: String| async move {
        ctx.schedule_activity("Echo", input).with_tag("gpu").await
    };
    let world = World::start(activities(), orchestration("Tagged", code)).await;
    for id in ["i", "j"] {
        world.client.start_orchestration(id, "Tagged", id).await.unwrap();
    }
    let both = async {
        while listed(&world.client, "no worker takes the tag \"gpu\"").await.waiting < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, both).await.expect("both are counted");
}

/// Lets all instances of that world end.
async fn all_end(world: &World, ids: &[&str]) {
    for id in ids {
        assert_eq!(world.outcome(id).await.unwrap(), *id);
    }
    nothing_is_listed(&world.client).await;
}

async fn one_runs(world: &World) {
    let runs = async {
        while world.runtime.metrics_snapshot().activities_running == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, runs).await.expect("an activity begins");
}

async fn pass(ctx: OrchestrationContext, input: String) -> Result<String, String> {
    ctx.schedule_activity("Pass", input).await
}

#[tokio::test]
async fn a_worker_that_is_full_while_others_wait_is_listed() {
    let (open, registry) = gate();
    let one = RuntimeOptions { worker_concurrency: 1, ..options() };
    let world = World::start_with(registry, orchestration("Pass", pass), one).await;
    world.client.start_orchestration("i", "Pass", "i").await.unwrap();
    // Alone it is no problem: nothing waits.
    tokio::time::sleep(LASTING).await;
    assert!(world.client.list_problems().await.unwrap().is_empty());
    world.client.start_orchestration("j", "Pass", "j").await.unwrap();
    listed(&world.client, "no activity has ended on its 1 slots").await;
    open.add_permits(2);
    all_end(&world, &["i", "j"]).await;
}

#[tokio::test]
async fn a_slot_that_code_takes_though_it_was_told_to_stop_is_listed() {
    let (open, registry) = gate();
    let grace = Duration::from_secs(60);
    let one = RuntimeOptions { worker_concurrency: 1, activity_cancellation_grace_period: grace, ..options() };
    let world = World::start_with(registry, orchestration("Pass", pass), one).await;
    world.client.start_orchestration("i", "Pass", "i").await.unwrap();
    one_runs(&world).await;
    world.client.start_orchestration("j", "Pass", "j").await.unwrap();
    world.client.cancel_instance("i", "not wanted").await.unwrap();
    world.outcome("i").await.unwrap_err();
    listed(&world.client, "1 of its 1 slots are taken by activities that were told to stop and run on, such as Pass")
        .await;
    open.add_permits(2);
    all_end(&world, &["j"]).await;
}

#[tokio::test]
async fn a_worker_whose_sessions_are_all_in_use_while_others_wait_is_listed() {
    let (open, registry) = gate();
    let code = |ctx: OrchestrationContext, input: String| async move {
        ctx.schedule_activity_on_session("Pass", input.clone(), input).await
    };
    let one = RuntimeOptions { max_sessions_per_runtime: 1, ..options() };
    let world = World::start_with(registry, orchestration("Pass", code), one).await;
    world.client.start_orchestration("i", "Pass", "i").await.unwrap();
    one_runs(&world).await;
    // Alone it is no problem: nothing waits.
    tokio::time::sleep(LASTING).await;
    assert!(world.client.list_problems().await.unwrap().is_empty());
    world.client.start_orchestration("j", "Pass", "j").await.unwrap();
    listed(&world.client, "all its 1 sessions are in use").await;
    open.add_permits(2);
    all_end(&world, &["i", "j"]).await;
}

/// A world whose store and broker fail as they are told to.
async fn faulty_world(place: &Place, options: RuntimeOptions) -> (World, Faults) {
    let (provider, faults) = (place.open().await, Faults::default());
    let code = |ctx: OrchestrationContext, input: String| async move { ctx.schedule_activity("Echo", input).await };
    let faulty = Faulty::new(&provider, &faults);
    (World::on(faulty, activities(), orchestration("Echo", code), options).await, faults)
}

#[tokio::test]
async fn a_commit_that_takes_long_and_those_that_have_no_room_meanwhile_are_listed() {
    let place = Place::default();
    let mut one = options();
    one.limits.warm_instances_max = 1;
    let (world, faults) = faulty_world(&place, one).await;
    faults.hang("commit");
    for id in ["i", "j"] {
        world.client.start_orchestration(id, "Echo", id).await.unwrap();
    }
    listed(&world.client, "all instances in memory are busy").await;
    listed(&world.client, "the store has not answered a commit for seconds").await;
    faults.heal("commit");
    all_end(&world, &["i", "j"]).await;
    world.runtime.shutdown(None).await;
}

#[tokio::test]
async fn an_instance_whose_turns_cannot_be_written_is_listed() {
    let place = Place::default();
    let (world, faults) = faulty_world(&place, options()).await;
    faults.refuse("commit");
    world.client.start_orchestration("i", "Echo", "i").await.unwrap();
    assert_eq!(listed(&world.client, "its turns fail again and again").await.instance_id, "i");
    faults.heal("commit");
    all_end(&world, &["i"]).await;
    world.runtime.shutdown(None).await;
}

#[tokio::test]
async fn what_the_broker_does_not_take_and_what_no_owner_takes_is_listed() {
    let place = Place::default();
    let (world, faults) = faulty_world(&place, options()).await;
    for (call, id, words) in [
        ("publish", "i", "the broker does not take activities"),
        ("request", "j", "the result of activity Echo is not taken by an owner"),
    ] {
        faults.refuse(call);
        world.client.start_orchestration(id, "Echo", id).await.unwrap();
        assert_eq!(listed(&world.client, words).await.instance_id, id);
        faults.heal(call);
        all_end(&world, &[id]).await;
    }
    world.runtime.shutdown(None).await;
}
