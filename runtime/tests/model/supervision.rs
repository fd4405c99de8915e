//! Goal: no task of a node ends unseen, and no work waits for one that has.
//! Method: the store or the broker panics in a call that the task makes, once or again and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use outlast::providers::Provider;
use outlast::{
    Client, NotReady, OrchestrationContext, OrchestrationRegistryBuilder, OrchestrationStatus, RuntimeOptions,
};
use outlast_broker::{Broker, Report, ReportResult, ShardRequest};
use outlast_core::{ActivityKey, EventId, ExecutionId, InstanceId, ShardId, Token};

use crate::model::faulty::{Faults, Faulty};
use crate::model::world::{SOON, World, activities, options, orchestration};
use crate::place::Place;

/// An activity, a timer and an event: every task of a node has a part in it.
fn steps() -> OrchestrationRegistryBuilder {
    orchestration("Steps", |ctx: OrchestrationContext, input: String| async move {
        ctx.schedule_wait("go").await;
        ctx.schedule_timer(Duration::from_millis(20)).await;
        ctx.schedule_activity("Echo", input).await
    })
}

async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, found).await.unwrap_or_else(|_| panic!("{what}: not within {SOON:?}"))
}

/// Runs instances until the faults have been met, and a last one after that.
async fn work_goes_on(client: &Client, faults: &Faults, call: &str) {
    for number in 0.. {
        let met = faults.left(call) == 0;
        let id = format!("{call}-{number}");
        client.start_orchestration(&id, "Steps", &id).await.unwrap();
        client.raise_event(&id, "go", "").await.unwrap();
        let status = client.wait_for_orchestration(&id, SOON).await.unwrap();
        assert!(
            matches!(&status, OrchestrationStatus::Completed { output, .. } if *output == id),
            "{call}: {status:?}"
        );
        if met {
            return;
        }
    }
}

/// Panics in whoever wakes it.
#[derive(Default)]
struct Bomb(AtomicBool);

impl Wake for Bomb {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
        panic!("a fault of a test in whoever answers");
    }
}

/// The task that takes what comes for shards calls nothing that could panic, but it answers this report itself, and so wakes
/// whoever waits for the answer.
async fn panic_in_shard_messages(broker: &dyn Broker) {
    let key = ActivityKey { instance: InstanceId::new("nobody"), execution: ExecutionId(1), event: EventId(1) };
    let bomb = Arc::new(Bomb::default());
    let waker = Waker::from(Arc::clone(&bomb));
    until("somebody answers", async || {
        let result = ReportResult::Unregistered { activity: "Nothing".to_owned() };
        let mut report = broker
            .request(ShardId(0), ShardRequest::Report(Box::new(Report { key: key.clone(), token: Token(0), result })));
        let waits = report.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
        for _ in 0..50 {
            if !waits || bomb.0.load(Ordering::Acquire) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bomb.0.load(Ordering::Acquire).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_panics_is_started_anew_and_is_a_problem_for_a_while() {
    let place = Place::default();
    let (provider, faults) = (place.open().await, Faults::default());
    let faulty: Arc<dyn Provider> = Faulty::new(&provider, &faults);
    let world = World::on(faulty, activities(), steps(), options()).await;
    let broker = provider.broker();
    let client = Client::new(provider);
    let mut expected = Vec::new();
    panic_in_shard_messages(&*broker).await;
    work_goes_on(&client, &faults, "shard messages").await;
    expected.push("the task \"shard messages\" ended unasked once".to_owned());
    for (task, call) in [
        ("due queue", "sleep_until"),
        ("inbox sweep", "written_elsewhere"),
        ("renewal", "renew"),
        ("commits", "commit"),
        ("problems", "report_shortages"),
    ] {
        faults.arm(call, 1);
        work_goes_on(&client, &faults, call).await;
        assert_eq!(world.runtime.readiness(), Ok(()), "{task}");
        expected.push(format!("the task \"{task}\" ended unasked once"));
    }
    until("all of it is listed", async || {
        let problems = client.list_problems().await.unwrap();
        let is_listed = |said: &String| problems.iter().any(|problem| problem.reason.contains(said));
        expected.iter().all(is_listed).then_some(())
    })
    .await;
    world.runtime.shutdown(None).await;
}

#[tokio::test]
async fn a_panic_beside_the_tasks_costs_no_work() {
    let place = Place::default();
    let (provider, faults) = (place.open().await, Faults::default());
    let client = Client::new(provider.clone());
    let faulty: Arc<dyn Provider> = Faulty::new(&provider, &faults);
    // A worker that cannot open its source, and shards whose inboxes and outstanding work cannot be read.
    for call in ["pull", "arrivals", "pending"] {
        client.start_orchestration(call, "Steps", call).await.unwrap();
        client.raise_event(call, "go", "").await.unwrap();
        faults.arm(call, 1);
        let world = World::on(faulty.clone(), activities(), steps(), options()).await;
        assert_eq!(world.outcome(call).await.unwrap(), call);
        assert_eq!(faults.left(call), 0, "{call}");
        world.runtime.shutdown(None).await;
    }
    // Shards that are taken from another node, and not served before the task that does so is started anew.
    let first = World::on(provider, activities(), steps(), options()).await;
    let world = World::on(faulty, activities(), steps(), options()).await;
    faults.arm("own", 1);
    first.runtime.shutdown(None).await;
    work_goes_on(&client, &faults, "own").await;
    // An attempt that cannot report, and a turn that cannot dispatch.
    for call in ["request", "publish"] {
        faults.arm(call, 1);
        work_goes_on(&client, &faults, call).await;
    }
    world.runtime.shutdown(None).await;
}

#[tokio::test]
async fn a_node_whose_task_fails_again_and_again_gives_its_shards_to_another() {
    let place = Place::default();
    let (provider, faults) = (place.open().await, Faults::default());
    let faulty: Arc<dyn Provider> = Faulty::new(&provider, &faults);
    let bad = World::on(faulty, activities(), steps(), options()).await;
    faults.arm("sleep_until", usize::MAX);
    let client = Client::new(provider.clone());
    until("it is not ready", async || {
        matches!(bad.runtime.readiness(), Err(NotReady::TaskFailing("due queue"))).then_some(())
    })
    .await;
    // Alone it keeps them; as soon as there is another one it does not.
    let good = World::on(provider, activities(), steps(), options()).await;
    until("it leaves", async || (bad.runtime.readiness() == Err(NotReady::Stopping)).then_some(())).await;
    let turns = bad.runtime.metrics_snapshot().turns;
    for number in 0..16 {
        let id = format!("i{number}");
        client.start_orchestration(&id, "Steps", &id).await.unwrap();
        client.raise_event(&id, "go", "").await.unwrap();
    }
    for number in 0..16 {
        assert_eq!(good.outcome(&format!("i{number}")).await.unwrap(), format!("i{number}"));
    }
    assert_eq!(bad.runtime.metrics_snapshot().turns, turns);
    good.runtime.shutdown(None).await;
    bad.runtime.shutdown(Some(0)).await;
}

#[test]
fn a_node_whose_executor_has_ended_under_it_leaves_its_shards() {
    let executor = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let place = Place::default();
    let first = executor();
    let orphan = first.block_on(async {
        let none = RuntimeOptions { worker_concurrency: 0, ..options() };
        World::on(place.open().await, activities(), steps(), none).await.runtime
    });
    drop(first);
    executor().block_on(async {
        let world = World::on(place.open().await, activities(), steps(), options()).await;
        work_goes_on(&world.client, &Faults::default(), "orphan").await;
        assert_eq!(orphan.readiness(), Err(NotReady::Stopping));
        world.runtime.shutdown(None).await;
    });
}
