//! Cancelling: the tree ends, running activities are told, then aborted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast::{
    ActivityContext, ActivityRegistryBuilder, OrchestrationContext, OrchestrationRegistry,
    OrchestrationRegistryBuilder, RuntimeOptions,
};
use outlast_broker::ShardNotice;
use outlast_core::{InboxSeq, InstanceId, Message, MessageId, MessageKind, ShardId, StartMessage, StartSnapshot};
use outlast_storage::DeleteOptions;
use tokio::sync::Notify;

use crate::model::world::{SOON, World, activities, options, orchestration};
use crate::place::Place;

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
    tokio::time::timeout(SOON, wait).await.unwrap();
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

/// An activity that says when it begins and when it is told to stop; one whose input is `deaf` goes on until it is let go.
#[derive(Clone, Default)]
struct Held {
    begun: Arc<Mutex<Vec<String>>>,
    told: Arc<Mutex<Vec<String>>>,
    let_go: Arc<Notify>,
}

impl Held {
    fn new() -> (Self, ActivityRegistryBuilder) {
        let held = Self::default();
        let inside = held.clone();
        let hold = move |ctx: ActivityContext, input: String| {
            let held = inside.clone();
            async move {
                held.begun.lock().unwrap().push(input.clone());
                if input == "deaf" {
                    held.let_go.notified().await;
                } else {
                    ctx.cancelled().await;
                    held.told.lock().unwrap().push(input.clone());
                }
                Ok(input)
            }
        };
        (held, activities().register("Hold", hold))
    }

    async fn until(list: &Mutex<Vec<String>>, all: &[&str]) {
        let wait = async {
            while !all.iter().all(|one| list.lock().unwrap().iter().any(|other| other == one)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
        assert!(waited.is_ok(), "{all:?} are not all among {:?}", list.lock().unwrap());
    }

    async fn until_begun(&self, all: &[&str]) {
        Self::until(&self.begun, all).await;
    }

    async fn until_told(&self, all: &[&str]) {
        Self::until(&self.told, all).await;
    }
}

fn holding() -> OrchestrationRegistryBuilder {
    let hold = |ctx: OrchestrationContext, input: String| async move { ctx.schedule_activity("Hold", input).await };
    orchestration("Hold", hold).register("Parent", |ctx: OrchestrationContext, input: String| async move {
        ctx.schedule_sub_orchestration("Hold", input).await
    })
}

#[tokio::test]
async fn a_forced_deletion_tells_what_runs_in_the_whole_tree() {
    let (held, activities) = Held::new();
    let world = World::start(activities, holding()).await;
    world.client.start_orchestration("i", "Hold", "one").await.unwrap();
    world.client.start_orchestration("p", "Parent", "child").await.unwrap();
    held.until_begun(&["one", "child"]).await;
    world.client.delete_instance("i", true).await.unwrap();
    world.client.delete_instance("p", true).await.unwrap();
    held.until_told(&["one", "child"]).await;
}

/// Whoever deleted it may have died before it told anybody.
#[tokio::test]
async fn a_deletion_that_nobody_tells_of_is_found_out() {
    let (held, activities) = Held::new();
    let place = Place::default();
    let provider = place.open().await;
    let world = World::on(provider.clone(), activities, holding(), options()).await;
    world.client.start_orchestration("i", "Hold", "one").await.unwrap();
    held.until_begun(&["one"]).await;
    provider.store().delete(&"i".into(), DeleteOptions::first_try(true)).await.unwrap();
    held.until_told(&["one"]).await;
}

/// The same for what has not begun: the deleted instance's activity waits behind one that holds the worker's only slot.
#[tokio::test]
async fn an_activity_of_an_instance_whose_deletion_nobody_tells_of_does_not_begin() {
    let (held, activities) = Held::new();
    let place = Place::default();
    let provider = place.open().await;
    let single = RuntimeOptions { worker_concurrency: 1, ..options() };
    let world = World::on(provider.clone(), activities, holding(), single).await;
    world.client.start_orchestration("first", "Hold", "deaf").await.unwrap();
    held.until_begun(&["deaf"]).await;
    for id in ["deleted", "last"] {
        world.client.start_orchestration(id, "Hold", id).await.unwrap();
        while world.client.read_execution_history(id, 1).await.unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    provider.store().delete(&"deleted".into(), DeleteOptions::first_try(true)).await.unwrap();
    // What has waited for less than this begins without a question.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    held.let_go.notify_one();
    held.until_begun(&["last"]).await;
    assert!(!held.begun.lock().unwrap().iter().any(|input| input == "deleted"));
}

#[tokio::test]
async fn an_attempt_for_an_earlier_life_takes_nothing_from_the_next() {
    let (held, activities) = Held::new();
    let world = World::start(activities, holding()).await;
    world.client.start_orchestration("i", "Hold", "deaf").await.unwrap();
    held.until_begun(&["deaf"]).await;
    world.client.delete_instance("i", true).await.unwrap();
    world.client.start_orchestration("i", "Hold", "second").await.unwrap();
    held.until_begun(&["second"]).await;
    held.let_go.notify_one();
    while world.runtime.metrics_snapshot().activities_running > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What ended was meant for the first life alone.
    assert!(held.told.lock().unwrap().is_empty());
    world.client.cancel_instance("i", "enough").await.unwrap();
    held.until_told(&["second"]).await;
}

#[tokio::test]
async fn a_worker_whose_slots_are_taken_by_what_nobody_wants_says_so() {
    let (held, activities) = Held::new();
    let full = RuntimeOptions { worker_concurrency: 2, ..options() };
    let world = World::start_with(activities, holding(), full).await;
    for id in ["a", "b"] {
        world.client.start_orchestration(id, "Hold", "deaf").await.unwrap();
    }
    while held.begun.lock().unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.client.cancel_instance("a", "enough").await.unwrap();
    world.client.delete_instance("b", true).await.unwrap();
    let listed = async || {
        let problems = world.client.list_problems().await.unwrap();
        problems.iter().any(|problem| problem.reason.contains("2 of its 2 slots"))
    };
    tokio::time::timeout(Duration::from_secs(10), async {
        while !listed().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        held.let_go.notify_one();
        while listed().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    held.let_go.notify_one();
}

/// Notices travel by ways that may delay them: this one comes while an activity of the instance runs, which nobody needs in memory.
#[tokio::test]
async fn a_late_notice_of_its_start_stops_nothing() {
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, goes_on) = (begun.clone(), go_on.clone());
    let registry = activities().register("Long", move |ctx: ActivityContext, _: String| {
        let (begins, goes_on) = (begins.clone(), goes_on.clone());
        async move {
            begins.notify_one();
            tokio::select! {
                () = ctx.cancelled() => Err("it was told to stop".to_owned()),
                () = goes_on.notified() => Ok("done".to_owned()),
            }
        }
    });
    let place = Place::default();
    let provider = place.open().await;
    let code = orchestration("Long", |ctx, input| async move { ctx.schedule_activity("Long", input).await });
    let options = RuntimeOptions { passivate_after: Duration::ZERO, ..options() };
    let world = World::on(provider.clone(), registry, code, options).await;
    world.client.start_orchestration("i", "Long", "").await.unwrap();
    begun.notified().await;
    let id = InstanceId::new("i");
    let kind = MessageKind::Start(StartMessage {
        name: "Long".to_owned(),
        version: None,
        input: String::new(),
        parent: None,
        traceparent: None,
    });
    let message = Message { id: MessageId::new("the start"), kind };
    let notice = StartSnapshot { instance: id.clone(), message, seq: InboxSeq(1) };
    let shard = ShardId::of(&id, provider.store().shards());
    for _ in 0..10 {
        provider.broker().notify(shard, ShardNotice::Started(Box::new(notice.clone())));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    go_on.notify_one();
    assert_eq!(world.outcome("i").await.unwrap(), "done");
}
