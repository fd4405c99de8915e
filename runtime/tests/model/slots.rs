//! Slots of a worker: taken until the code has really ended; and what a shutdown does to code that does not end.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use outlast::{ActivityContext, OrchestrationContext, RuntimeOptions};
use tokio::sync::Notify;

use crate::model::world::{SOON, World, activities, options, orchestration};

const SHORT: Duration = Duration::from_millis(100);

/// Counts user code that exists at this moment, and the most there was at once.
#[derive(Clone, Default)]
struct Census {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct Counted(Census);

impl Census {
    fn enter(&self) -> Counted {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        Counted(self.clone())
    }

    fn now(&self) -> usize {
        self.now.load(Ordering::SeqCst)
    }

    async fn until(&self, count: usize) {
        let reached = async {
            while self.now() != count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(SOON, reached).await.unwrap();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn late(ctx: OrchestrationContext, _: String) -> Result<String, String> {
    ctx.schedule_activity("Deaf", "").with_start_to_close(SHORT).await
}

async fn deaf(ctx: OrchestrationContext, _: String) -> Result<String, String> {
    ctx.schedule_activity("Deaf", "").await
}

/// Code that hears nothing and ends when it is dropped.
async fn sleep_on(census: Census) -> Result<String, String> {
    let _counted = census.enter();
    std::future::pending().await
}

#[tokio::test]
async fn a_slot_is_taken_until_the_code_has_ended_although_its_outcome_is_known() {
    let census = Census::default();
    let inside = census.clone();
    let registry = activities().register("Deaf", move |_: ActivityContext, _: String| sleep_on(inside.clone()));
    let one = RuntimeOptions {
        worker_concurrency: 1,
        activity_cancellation_grace_period: Duration::from_millis(500),
        ..options()
    };
    let world = World::start_with(registry, orchestration("Late", late), one).await;
    for n in 0..4 {
        world.client.start_orchestration(n.to_string(), "Late", "").await.unwrap();
    }
    let mut seen_lingering = false;
    for n in 0..4 {
        let outcome = world.outcome(&n.to_string()).await.unwrap_err();
        assert!(outcome.display_message().starts_with("timeout: "), "{outcome:?}");
        // Either the metric or the census may be read a moment later than the other.
        seen_lingering |= world.runtime.metrics_snapshot().activities_running == 1 && census.now() == 1;
    }
    assert!(seen_lingering, "an outcome is reported before its code has ended, and its code is counted");
    assert_eq!(census.most.load(Ordering::SeqCst), 1, "one slot runs one at a time");
    census.until(0).await;
    while world.runtime.metrics_snapshot().activities_running > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_blocks_its_thread_keeps_its_slot_until_it_comes_back() {
    let census = Census::default();
    let (inside, begun) = (census.clone(), Arc::new(Notify::new()));
    let (release, released) = mpsc::channel::<()>();
    let (released, begin) = (Arc::new(std::sync::Mutex::new(released)), begun.clone());
    let registry = activities().register("Deaf", move |_: ActivityContext, _: String| {
        let (census, released, begin) = (inside.clone(), released.clone(), begin.clone());
        async move {
            let _counted = census.enter();
            begin.notify_one();
            // No await: nothing can abort it.
            released.lock().unwrap().recv().map(|()| String::new()).map_err(|error| error.to_string())
        }
    });
    let grace = Duration::from_millis(20);
    let one = RuntimeOptions { worker_concurrency: 1, activity_cancellation_grace_period: grace, ..options() };
    let code = orchestration("Late", late).register("Quick", |ctx: OrchestrationContext, _: String| async move {
        ctx.schedule_activity("Echo", "").await
    });
    let world = World::start_with(registry, code, one).await;
    world.client.start_orchestration("late", "Late", "").await.unwrap();
    begun.notified().await;
    assert!(world.outcome("late").await.unwrap_err().display_message().starts_with("timeout: "));
    world.client.start_orchestration("quick", "Quick", "").await.unwrap();
    // Well after the grace period and the abort.
    let waited = world.client.wait_for_orchestration("quick", Duration::from_secs(2)).await;
    assert!(matches!(waited, Err(outlast::ClientError::Timeout)), "{waited:?}");
    assert_eq!((census.now(), world.runtime.metrics_snapshot().activities_running), (1, 1));
    release.send(()).unwrap();
    assert_eq!(world.outcome("quick").await.unwrap(), "");
}

#[tokio::test]
async fn after_a_shutdown_no_code_runs_that_can_be_aborted() {
    let census = Census::default();
    let inside = census.clone();
    let registry = activities().register("Deaf", move |_: ActivityContext, _: String| sleep_on(inside.clone()));
    let world = World::start_with(registry, orchestration("Deaf", deaf), options()).await;
    world.client.start_orchestration("i", "Deaf", "").await.unwrap();
    census.until(1).await;
    world.runtime.clone().shutdown(Some(100)).await;
    assert_eq!((census.now(), world.runtime.metrics_snapshot().activities_running), (0, 0));
}

#[tokio::test]
async fn the_shortest_wish_for_a_shutdown_wins() {
    let census = Census::default();
    let inside = census.clone();
    let registry = activities().register("Deaf", move |_: ActivityContext, _: String| sleep_on(inside.clone()));
    let world = World::start_with(registry, orchestration("Deaf", deaf), options()).await;
    world.client.start_orchestration("i", "Deaf", "").await.unwrap();
    census.until(1).await;
    let begun = Instant::now();
    let patient = tokio::spawn(world.runtime.clone().shutdown(Some(600_000)));
    tokio::task::yield_now().await;
    world.runtime.clone().shutdown(Some(0)).await;
    patient.await.unwrap();
    // A longer wish later changes nothing, and neither does a call that is given up.
    world.runtime.clone().shutdown(Some(u64::MAX)).await;
    assert!(begun.elapsed() < SOON && census.now() == 0);
}

#[test]
fn a_shutdown_works_outside_of_the_executor_too() {
    let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let world = executor.block_on(World::start(activities(), orchestration("Deaf", deaf)));
    let metrics = world.runtime.metrics_snapshot();
    futures::executor::block_on(world.runtime.clone().shutdown(Some(100)));
    assert_eq!(metrics.activities_running, 0);
    assert!(world.runtime.readiness().is_err());
}

#[test]
fn a_start_outside_of_an_executor_is_a_typed_error() {
    let executor = tokio::runtime::Runtime::new().unwrap();
    let place = crate::place::Place::default();
    let provider = executor.block_on(place.open());
    let started = outlast::runtime::Runtime::try_start(
        provider,
        activities().build(),
        orchestration("Deaf", deaf).build(),
        options(),
    );
    let Err(error) = futures::executor::block_on(started) else { panic!("it cannot run anywhere") };
    assert!(matches!(error, outlast::runtime::StartError::OutsideOfTokio), "{error}");
}
