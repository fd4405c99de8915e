//! Goal: nothing of a deleted life of an id reaches the next one, whoever speaks while it goes; and a deletion or a fork whose
//! answer is lost has happened once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outlast::{ActivityContext, Client, ClientError, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus};
use outlast_core::{InstanceState, InstanceStatus, MessageId};

use crate::model::faulty::{Faults, Faulty};
use crate::model::world::{SOON, World, activities, options};
use crate::place::Place;

fn registry() -> outlast::OrchestrationRegistryBuilder {
    OrchestrationRegistry::builder()
        .register("Wait", |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("go").await) })
        .register("Life", |ctx: OrchestrationContext, life: String| async move {
            let mut said = vec![ctx.schedule_activity("Slow", &life).await?];
            loop {
                let message = ctx.dequeue_event("queue").await;
                if message == "end" {
                    return Ok(format!("{life}: {}", said.join(" ")));
                }
                said.push(message);
            }
        })
}

/// A client that looks seldom, so that what it is told decides.
fn patient(provider: std::sync::Arc<dyn outlast::providers::Provider>) -> Client {
    let options = outlast::ClientOptions { poll_interval: Duration::from_secs(5), ..outlast::ClientOptions::default() };
    Client::with_options(provider, options)
}

/// Each life numbers its executions from 1, so the number does not tell them apart.
#[tokio::test]
async fn late_word_of_an_earlier_life_ends_no_wait_for_this_one() {
    let place = Place::default();
    let provider = place.open().await;
    let broker = provider.broker();
    let world = World::on(provider.clone(), activities(), registry(), options()).await;
    let (starter, other) = (patient(provider.clone()), patient(provider));
    let mut ended = InstanceState::begun("Wait");
    ended.status = InstanceStatus::Completed;
    ended.output = Some("of an earlier life".to_owned());
    starter.start_orchestration("i", "Wait", "").await.unwrap();
    let late = async {
        for _ in 0..10 {
            broker.publish_status(&"i".into(), Some(&ended), None);
            broker.publish_status(&"i".into(), Some(&ended), Some(&MessageId::new("an earlier start")));
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        world.client.raise_event("i", "go", "of this life").await.unwrap();
    };
    let waits =
        async { tokio::join!(starter.wait_for_orchestration("i", SOON), other.wait_for_orchestration("i", SOON)) };
    let ((started, waited), ()) = tokio::join!(waits, late);
    for status in [started.unwrap(), waited.unwrap()] {
        let OrchestrationStatus::Completed { output, .. } = status else { panic!("{status:?}") };
        assert_eq!(output, "of this life");
    }
}

#[tokio::test]
async fn a_deletion_whose_answer_was_lost_has_succeeded() {
    let place = Place::default();
    let (provider, faults) = (place.open().await, Faults::default());
    let world = World::on(Faulty::new(&provider, &faults), activities(), registry(), options()).await;
    world.client.start_orchestration("i", "Wait", "").await.unwrap();
    faults.lose_answers("delete", 1);
    world.client.delete_instance("i", true).await.unwrap();
    assert_eq!(faults.left("delete"), 0);
    assert_eq!(world.client.get_orchestration_status("i").await.unwrap(), OrchestrationStatus::NotFound);
    let again = world.client.delete_instance("i", true).await.unwrap_err();
    assert!(matches!(again, ClientError::InstanceNotFound { .. }), "nothing was lost this time: {again:?}");
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Every try of the call is carried out and its answer lost, from before the deletion until after the next start.
#[tokio::test]
async fn a_call_that_is_repeated_reaches_no_later_life() {
    const TRIES: usize = 1_000;
    let place = Place::default();
    let (provider, faults) = (place.open().await, Faults::default());
    let world = World::on(provider.clone(), activities(), registry(), options()).await;
    let caller = Client::new(Faulty::new(&provider, &faults));
    let (raise, cancel) = (caller.clone(), caller.clone());
    let calls: [(&str, futures::future::BoxFuture<'static, Result<(), ClientError>>); 2] = [
        ("raised", Box::pin(async move { raise.raise_event("raised", "go", "of the last life").await })),
        ("cancelled", Box::pin(async move { cancel.cancel_instance("cancelled", "of the last life").await })),
    ];
    for (id, call) in calls {
        world.client.start_orchestration(id, "Wait", "").await.unwrap();
        world.events(id, 2).await;
        faults.lose_answers("send", TRIES);
        let call = tokio::spawn(call);
        until(|| faults.left("send") < TRIES).await;
        world.client.delete_instance(id, true).await.unwrap();
        world.client.start_orchestration(id, "Wait", "").await.unwrap();
        world.events(id, 2).await;
        let before = faults.left("send");
        until(|| faults.left("send") + 1 < before).await;
        faults.heal("send");
        let ended = call.await.unwrap();
        assert!(matches!(&ended, Err(ClientError::InstanceNotFound { .. })), "{ended:?}");
        world.client.raise_event(id, "go", "of this life").await.unwrap();
        assert_eq!(world.outcome(id).await.unwrap(), "of this life");
    }
}

#[tokio::test]
async fn a_fork_whose_answer_was_lost_is_there_once() {
    let place = Place::default();
    let (provider, faults) = (place.open().await, Faults::default());
    let world = World::on(Faulty::new(&provider, &faults), activities(), registry(), options()).await;
    world.client.start_orchestration("i", "Wait", "").await.unwrap();
    world.events("i", 2).await;
    faults.lose_answers("import", 1);
    world.client.fork_instance("i", 1, 2, "fork").await.unwrap();
    assert_eq!(faults.left("import"), 0);
    world.client.start_orchestration("taken", "Wait", "").await.unwrap();
    faults.lose_answers("import", 1);
    let refused = world.client.fork_instance("i", 1, 2, "taken").await.unwrap_err();
    assert!(matches!(refused, ClientError::InstanceExists { .. }), "another instance is no fork of it: {refused:?}");
    world.client.raise_event("fork", "go", "forked").await.unwrap();
    assert_eq!(world.outcome("fork").await.unwrap(), "forked");
}

/// In each round senders, a worker with heartbeats and a forced deletion race; all of them have returned before the next life
/// begins, so whatever that is told bears its own number.
#[tokio::test(flavor = "multi_thread")]
async fn a_life_is_told_only_what_was_sent_to_it_whoever_raced_the_deletion_of_the_last() {
    let activities = activities().register("Slow", |ctx: ActivityContext, life: String| async move {
        let before = ctx.last_heartbeat();
        ctx.heartbeat(&life);
        tokio::time::sleep(Duration::from_millis(4)).await;
        ctx.heartbeat(&life);
        Ok(before.unwrap_or(life))
    });
    let world = World::start(activities, registry()).await;
    let client = &world.client;
    for life in 0..24_u64 {
        client.start_orchestration("i", "Life", life.to_string()).await.unwrap();
        let stop = AtomicBool::new(false);
        let send = async || {
            while !stop.load(Ordering::Relaxed) {
                match client.enqueue_event("i", "queue", life.to_string()).await {
                    Ok(()) | Err(ClientError::InstanceNotFound { .. }) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
        };
        let is_to_end = life % 3 == 2;
        let finish = async {
            tokio::time::sleep(Duration::from_millis(life % 7 * 2)).await;
            if is_to_end {
                client.enqueue_event("i", "queue", "end").await.unwrap();
                let output = world.outcome("i").await.unwrap();
                let (of, said) = output.split_once(": ").unwrap();
                assert_eq!(of, life.to_string());
                assert!(said.split(' ').all(|said| said == of), "a message of another life: {output}");
            }
            client.delete_instance("i", !is_to_end).await.unwrap();
            stop.store(true, Ordering::Relaxed);
        };
        tokio::join!(send(), send(), finish);
    }
    assert_eq!(client.get_queue_depths().await.unwrap().orchestrator_queue, 0, "nothing is at rest");
}
