//! Whatever stands still without waiting for something that its code has asked for is listed, with the reason, while it lasts.

use std::sync::Arc;
use std::time::Duration;

use outlast::{
    ActivityContext, ActivityRegistryBuilder, Client, OrchestrationContext, OrchestrationRegistry, Problem,
    RuntimeOptions,
};
use tokio::sync::Semaphore;

use crate::model::world::{SOON, World, activities, options, orchestration};
use crate::place::Place;

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

/// On a cluster a worker does not know yet what waits for it in the stream.
#[tokio::test]
async fn a_worker_that_is_full_while_others_wait_is_listed() {
    let place = Place::default();
    let provider = place.open().await;
    if provider.broker().is_shared() {
        return;
    }
    let (open, registry) = gate();
    let code = |ctx: OrchestrationContext, input: String| async move { ctx.schedule_activity("Pass", input).await };
    let one = RuntimeOptions { worker_concurrency: 1, ..options() };
    let world = World::on(provider, registry, orchestration("Pass", code), one).await;
    for id in ["i", "j"] {
        world.client.start_orchestration(id, "Pass", id).await.unwrap();
    }
    listed(&world.client, "no activity has ended on its 1 slots").await;
    open.add_permits(2);
    for id in ["i", "j"] {
        assert_eq!(world.outcome(id).await.unwrap(), id);
    }
    nothing_is_listed(&world.client).await;
}
