//! Goal: a node that is not there any more, or never quite was, keeps no share of the shards.
//! Method: runtimes that are given up, dropped and cut off in all ways; then work for every shard on the next one.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use outlast::providers::Provider;
use outlast::runtime::Runtime;
use outlast::{OrchestrationContext, OrchestrationRegistry};

use crate::model::world::{World, activities, options, orchestration};
use crate::place::Place;

/// More than there are shards, so that a ghost's share would be missed.
const INSTANCES: usize = 150;

fn registry() -> OrchestrationRegistry {
    code().build()
}

fn code() -> outlast::OrchestrationRegistryBuilder {
    orchestration("Echo", |ctx: OrchestrationContext, input: String| async move {
        ctx.schedule_activity("Echo", input).await
    })
}

/// Polls a start so many times, with a pause in which what it waits for may come.
async fn start_a_little(provider: Arc<dyn Provider>, polls: usize, pause: Duration) {
    let mut start = pin!(Runtime::try_start(provider, activities().build(), registry(), options()));
    for _ in 0..polls {
        if futures::poll!(start.as_mut()).is_ready() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// A runtime of this provider has all shards.
async fn all_is_served(provider: Arc<dyn Provider>) {
    let world = World::on(provider, activities(), code(), options()).await;
    for n in 0..INSTANCES {
        world.client.start_orchestration(format!("i{n}"), "Echo", "x").await.unwrap();
    }
    for n in 0..INSTANCES {
        assert_eq!(world.outcome(&format!("i{n}")).await.unwrap(), "x");
    }
    world.runtime.shutdown(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_given_up_leaves_nothing() {
    let place = Place::default();
    let provider = place.open().await;
    for polls in 0..8 {
        for pause in [Duration::ZERO, Duration::from_millis(3)] {
            start_a_little(provider.clone(), polls, pause).await;
        }
    }
    all_is_served(provider).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_panicked_or_was_aborted_leaves_nothing() {
    let place = Place::default();
    let provider = place.open().await;
    for polls in 1..5 {
        let aborted = tokio::spawn(start_a_little(provider.clone(), 1_000, Duration::from_secs(60)));
        let panicking = async {
            let mut start = pin!(Runtime::try_start(provider.clone(), activities().build(), registry(), options()));
            for _ in 0..polls {
                let _pending = futures::poll!(start.as_mut());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            std::panic::resume_unwind(Box::new("on purpose"));
        };
        let _panicked: Result<(), _> = AssertUnwindSafe(panicking).catch_unwind().await;
        aborted.abort();
    }
    all_is_served(provider).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_is_dropped_without_its_executor_frees_its_shards() {
    let place = Place::default();
    let provider = place.open().await;
    let inner = provider.clone();
    let dropped = std::thread::spawn(move || {
        let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let start = Runtime::try_start(inner, activities().build(), registry(), options());
        let runtime = executor.block_on(start).unwrap();
        executor.shutdown_background();
        drop(runtime);
    });
    dropped.join().unwrap();
    all_is_served(provider).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_that_is_given_up_frees_the_shards() {
    let place = Place::default();
    let provider = place.open().await;
    for polls in 1..6 {
        let start = Runtime::try_start(provider.clone(), activities().build(), registry(), options());
        let runtime = start.await.unwrap();
        let mut shutdown = Box::pin(runtime.shutdown(Some(0)));
        for _ in 0..polls {
            if futures::poll!(shutdown.as_mut()).is_ready() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    all_is_served(provider).await;
}
