//! Leaving takes the time that it was given and a little more, whichever servers are away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outlast::providers::cluster::ClusterProvider;
use outlast::runtime::Runtime;
use outlast::{ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, RuntimeOptions};
use outlast_test_support::{NatsServer, PostgresServer};
use tokio::sync::Semaphore;

use crate::node::Cluster;

/// What `shutdown` is given.
const GIVEN: Duration = Duration::from_millis(1_000);
/// The documented rest is 2.5 s; a busy machine gets as much again. Limits in a row took 8 s and more.
const BOUND: Duration = Duration::from_millis(7_500);

/// A node whose activity does not end, and servers that can be stopped.
struct World {
    postgres: PostgresServer,
    nats: NatsServer,
    provider: Arc<ClusterProvider>,
    runtime: Arc<Runtime>,
}

impl World {
    async fn start() -> Self {
        let (postgres, nats) = (PostgresServer::trusting(), NatsServer::own());
        let provider = Cluster::on(&postgres.url, &nats.url).provider().await;
        let begun = Arc::new(Semaphore::new(0));
        let inside = Arc::clone(&begun);
        let hold = move |ctx: ActivityContext, _: String| {
            inside.add_permits(1);
            async move {
                ctx.cancelled().await;
                Err("cancelled".to_owned())
            }
        };
        let code = |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_activity_on_session("Hold", "", "session").await
        };
        let activities = ActivityRegistry::builder().register("Hold", hold).build();
        let orchestrations = OrchestrationRegistry::builder().register("Hold", code).build();
        let runtime =
            Runtime::start_with_options(provider.clone(), activities, orchestrations, RuntimeOptions::default()).await;
        Client::new(provider.clone()).start_orchestration("i", "Hold", "").await.unwrap();
        drop(begun.acquire().await.unwrap());
        Self { postgres, nats, provider, runtime }
    }

    async fn leaves_in_time(self) {
        let asked = Instant::now();
        self.runtime.shutdown(Some(GIVEN.as_millis() as u64)).await;
        let took = asked.elapsed();
        assert!(took < BOUND, "shutdown took {took:?}");
        drop(self.provider);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_keeps_its_time_without_postgres() {
    let mut world = World::start().await;
    world.postgres.stop_immediately();
    world.leaves_in_time().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_keeps_its_time_without_nats() {
    let mut world = World::start().await;
    world.nats.kill();
    world.leaves_in_time().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_keeps_its_time_without_any_server() {
    let mut world = World::start().await;
    world.postgres.stop_immediately();
    world.nats.kill();
    world.leaves_in_time().await;
}

/// A server that answers nothing and refuses nothing is worse than one that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn shutdown_keeps_its_time_when_servers_hang() {
    let world = World::start().await;
    let signal_all = |signal| {
        world.postgres.signal(signal);
        world.nats.signal(signal);
    };
    signal_all("-STOP");
    let asked = Instant::now();
    world.runtime.clone().shutdown(Some(GIVEN.as_millis() as u64)).await;
    let took = asked.elapsed();
    signal_all("-CONT");
    assert!(took < BOUND, "shutdown took {took:?}");
}

#[test]
fn a_runtime_that_is_dropped_without_any_server_keeps_nobody() {
    let executor = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut world = executor.block_on(World::start());
    world.postgres.stop_immediately();
    world.nats.kill();
    let asked = Instant::now();
    executor.block_on(async { drop((world.runtime, world.provider)) });
    drop(executor);
    let took = asked.elapsed();
    assert!(took < BOUND, "dropping took {took:?}");
}
