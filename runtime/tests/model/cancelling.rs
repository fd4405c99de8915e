//! Cancelling: the tree ends, running activities are told, then aborted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outlast::{ActivityContext, OrchestrationContext, OrchestrationRegistry, RuntimeOptions};
use tokio::sync::Notify;

use crate::model::world::{World, activities, options, orchestration};

#[tokio::test]
async fn a_cancel_reaches_children_and_running_activities() {
    let (started, told) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begin, hear) = (started.clone(), told.clone());
    let registry = activities().register("Long", move |ctx: ActivityContext, _: String| {
        let (begin, hear) = (begin.clone(), hear.clone());
        async move {
            begin.notify_one();
            ctx.cancelled().await;
            hear.notify_one();
            Err("stopped".to_owned())
        }
    });
    let orchestrations = OrchestrationRegistry::builder()
        .register(
            "Child",
            |ctx: OrchestrationContext, _: String| async move { ctx.schedule_activity("Long", "").await },
        )
        .register("Parent", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_sub_orchestration("Child", "").await
        });
    let world = World::start(registry, orchestrations).await;
    world.client.start_orchestration("p", "Parent", "").await.unwrap();
    started.notified().await;
    world.client.cancel_instance("p", "not needed").await.unwrap();
    told.notified().await;
    assert_eq!(world.outcome("p").await.unwrap_err().display_message(), "canceled: not needed");
    assert_eq!(world.outcome("p::sub::2").await.unwrap_err().display_message(), "canceled: not needed");
    world.client.cancel_instance("p", "again").await.unwrap();
    assert_eq!(world.outcome("p").await.unwrap_err().display_message(), "canceled: not needed");
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn an_activity_that_does_not_listen_is_aborted_after_the_grace_period() {
    let aborted = Arc::new(AtomicBool::new(false));
    let started = Arc::new(Notify::new());
    let (flag, begin) = (aborted.clone(), started.clone());
    let registry = activities().register("Deaf", move |_: ActivityContext, _: String| {
        let (guard, begin) = (SetOnDrop(flag.clone()), begin.clone());
        async move {
            let _guard = guard;
            begin.notify_one();
            std::future::pending::<Result<String, String>>().await
        }
    });
    let code = |ctx: OrchestrationContext, _: String| async move { ctx.schedule_activity("Deaf", "").await };
    let short = RuntimeOptions { activity_cancellation_grace_period: Duration::from_millis(30), ..options() };
    let world = World::start_with(registry, orchestration("Deaf", code), short).await;
    world.client.start_orchestration("i", "Deaf", "").await.unwrap();
    started.notified().await;
    world.client.cancel_instance("i", "enough").await.unwrap();
    assert!(world.outcome("i").await.is_err());
    let wait = async {
        while !aborted.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait).await.unwrap();
}

#[tokio::test]
async fn a_dropped_activity_is_cancelled() {
    let told = Arc::new(Notify::new());
    let hear = told.clone();
    let registry = activities().register("Long", move |ctx: ActivityContext, _: String| {
        let hear = hear.clone();
        async move {
            ctx.cancelled().await;
            hear.notify_one();
            Err("stopped".to_owned())
        }
    });
    let code = |ctx: OrchestrationContext, _: String| async move {
        let long = ctx.schedule_activity("Long", "");
        ctx.schedule_timer(Duration::from_millis(100)).await;
        drop(long);
        ctx.schedule_wait("never").await;
        Ok(String::new())
    };
    let world = World::start(registry, orchestration("Drop", code)).await;
    world.client.start_orchestration("i", "Drop", "").await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), told.notified()).await.unwrap();
}

#[tokio::test]
async fn a_cancel_before_the_first_turn_wins() {
    let code = |_: OrchestrationContext, _: String| async move { Ok(String::new()) };
    let world = World::start(activities(), orchestration("Known", code)).await;
    world.client.start_orchestration("i", "Nobody", "").await.unwrap();
    world.client.cancel_instance("i", "early").await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap_err().display_message(), "canceled: early");
}
