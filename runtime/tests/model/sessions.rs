//! Sessions: how many a worker holds, which one gives way, and how long one stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast::{ActivityContext, ActivityRegistryBuilder, OrchestrationContext, OrchestrationRegistry, RuntimeOptions};
use tokio::sync::{Barrier, Notify};

use crate::model::world::{World, activities, options, orchestration};
use crate::place::Place;

/// Which workers ran what of which session.
type Seen = Arc<Mutex<BTreeMap<String, Vec<String>>>>;

fn noting(seen: &Seen) -> ActivityRegistryBuilder {
    let seen = seen.clone();
    activities().register("Note", move |ctx: ActivityContext, _: String| {
        let seen = seen.clone();
        async move {
            let session = ctx.session_id().unwrap_or_default().to_owned();
            seen.lock().unwrap().entry(session).or_default().push(ctx.worker_id().to_owned());
            Ok(String::new())
        }
    })
}

async fn note(ctx: OrchestrationContext, session: String) -> Result<String, String> {
    ctx.schedule_activity_on_session("Note", "", session).await
}

#[tokio::test]
async fn idle_sessions_give_way_when_the_cap_is_met() {
    let seen = Seen::default();
    let world = World::start_with(noting(&seen), orchestration("Note", note), RuntimeOptions::default()).await;
    // Three times as many as the cap, each idle by the time of the next.
    for n in 0..30 {
        world.client.start_orchestration(n.to_string(), "Note", format!("s{n}")).await.unwrap();
        assert_eq!(world.outcome(&n.to_string()).await.unwrap(), "");
    }
    assert_eq!(seen.lock().unwrap().len(), 30);
}

#[tokio::test]
async fn with_room_for_one_session_joined_ones_run_one_after_the_other() {
    let running = Arc::new(Mutex::new(BTreeSet::new()));
    let registry = activities().register("Alone", move |ctx: ActivityContext, _: String| {
        let running = running.clone();
        async move {
            let session = ctx.session_id().unwrap_or_default().to_owned();
            let before = {
                let mut running = running.lock().unwrap();
                running.insert(session.clone());
                running.len()
            };
            tokio::time::sleep(Duration::from_millis(5)).await;
            running.lock().unwrap().remove(&session);
            if before == 1 { Ok(String::new()) } else { Err(format!("{before} sessions at once")) }
        }
    });
    let code = |ctx: OrchestrationContext, _: String| async move {
        let all = (0..6).map(|n| ctx.schedule_activity_on_session("Alone", "", format!("s{n}"))).collect();
        ctx.join(all).await.into_iter().collect::<Result<Vec<_>, _>>().map(|all| all.len().to_string())
    };
    let narrow = RuntimeOptions { max_sessions_per_runtime: 1, ..options() };
    let world = World::start_with(registry, orchestration("Join", code), narrow).await;
    assert_eq!(world.run("Join", "").await.unwrap(), "6");
}

#[tokio::test]
async fn activities_of_one_session_meet_also_when_the_cap_is_met() {
    let meeting = Arc::new(Barrier::new(3));
    let registry = activities().register("Meet", move |_: ActivityContext, _: String| {
        let meeting = meeting.clone();
        async move {
            meeting.wait().await;
            Ok(String::new())
        }
    });
    let code = |ctx: OrchestrationContext, _: String| async move {
        let all = (0..3).map(|_| ctx.schedule_activity_on_session("Meet", "", "s")).collect();
        ctx.join(all).await.into_iter().collect::<Result<Vec<_>, _>>().map(|all| all.len().to_string())
    };
    let narrow = RuntimeOptions { max_sessions_per_runtime: 1, ..options() };
    let world = World::start_with(registry, orchestration("Join", code), narrow).await;
    assert_eq!(world.run("Join", "").await.unwrap(), "3");
}

#[tokio::test]
async fn the_session_that_was_used_last_stays() {
    let seen = Seen::default();
    let place = Place::default();
    let provider = place.open().await;
    let two = RuntimeOptions { max_sessions_per_runtime: 2, ..options() };
    let one = World::on(provider.clone(), noting(&seen), orchestration("Note", note), two.clone()).await;
    let run = async |n: u32, session: &str| {
        one.client.start_orchestration(n.to_string(), "Note", session).await.unwrap();
        one.outcome(&n.to_string()).await.unwrap();
    };
    for (n, session) in (1..).zip(["old", "kept", "kept", "new"]) {
        run(n, session).await;
    }
    // Another worker is there, and gets what the first one does not hold any more.
    let other = World::on(provider, noting(&seen), OrchestrationRegistry::builder(), two).await;
    for n in 5..25 {
        run(n, "kept").await;
    }
    drop(other);
    let seen = seen.lock().unwrap();
    let workers: BTreeSet<&String> = seen["kept"].iter().collect();
    assert_eq!(workers.len(), 1, "{seen:?}");
}

#[tokio::test]
async fn a_session_in_use_stays_however_long() {
    let seen = Seen::default();
    let (begun, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let registry = || {
        let (begun, end) = (begun.clone(), end.clone());
        noting(&seen).register("Long", move |ctx: ActivityContext, _: String| {
            let (begun, end) = (begun.clone(), end.clone());
            async move {
                begun.notify_one();
                end.notified().await;
                Ok(ctx.worker_id().to_owned())
            }
        })
    };
    let code = |ctx: OrchestrationContext, session: String| async move {
        ctx.schedule_activity_on_session("Long", "", session).await
    };
    let place = Place::default();
    let provider = place.open().await;
    let short = RuntimeOptions { session_idle_timeout: Duration::from_millis(300), ..options() };
    let orchestrations = orchestration("Note", note).register("Long", code);
    let world = World::on(provider.clone(), registry(), orchestrations, short.clone()).await;
    world.client.start_orchestration("long", "Long", "s").await.unwrap();
    begun.notified().await;
    let _other = World::on(provider, registry(), OrchestrationRegistry::builder(), short).await;
    // Long enough for the session to be free for others, were it not used.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    for n in 0..10 {
        world.client.start_orchestration(n.to_string(), "Note", "s").await.unwrap();
        world.outcome(&n.to_string()).await.unwrap();
    }
    end.notify_one();
    let holder = world.outcome("long").await.unwrap();
    assert_eq!(seen.lock().unwrap()["s"], vec![holder; 10]);
}
