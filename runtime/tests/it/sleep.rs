//! A machine that slept: its clock has gone on, and the monotonic one, by which executors count, has not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use outlast::OrchestrationContext;
use outlast::providers::Provider;
use outlast_broker::Broker;
use outlast_broker::in_process::InProcessBroker;
use outlast_storage::Store;
use outlast_storage::sqlite::{MachineClock, SqliteStore};

use crate::world::{World, activities, options, orchestration};

struct Machine {
    slept_ms: AtomicU64,
    since: Instant,
}

impl MachineClock for Machine {
    fn wall(&self) -> Duration {
        let real = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        real + Duration::from_millis(self.slept_ms.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.since.elapsed()
    }
}

struct OnMachine {
    store: Arc<SqliteStore>,
    broker: Arc<InProcessBroker>,
}

#[async_trait]
impl Provider for OnMachine {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn broker(&self) -> Arc<dyn Broker> {
        self.broker.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn timers_fire_when_the_machine_wakes() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Arc::new(Machine { slept_ms: AtomicU64::new(0), since: Instant::now() });
    let address = directory.path().join("db");
    let store = Arc::new(SqliteStore::open_on(address.to_str().unwrap(), machine.clone()).unwrap());
    let broker = Arc::new(InProcessBroker::new());
    store.on_arrival(outlast_client::carry_arrivals(broker.clone()));
    let naps = |ctx: OrchestrationContext, seconds: String| async move {
        let begun = ctx.utc_now().await?;
        ctx.schedule_timer(Duration::from_secs(seconds.parse().unwrap())).await;
        let ended = ctx.utc_now().await?;
        Ok(ended.duration_since(begun).unwrap().as_secs().to_string())
    };
    let world =
        World::on(Arc::new(OnMachine { store, broker }), activities(), orchestration("Nap", naps), options()).await;
    // One that is in memory, and one that still lies in the store.
    for seconds in ["30", "3600"] {
        world.client.start_orchestration(seconds, "Nap", seconds).await.unwrap();
        world.events(seconds, 2).await;
    }
    machine.slept_ms.store(2 * 3_600_000, Ordering::Relaxed);
    for seconds in ["30", "3600"] {
        let slept: u64 = world.outcome(seconds).await.unwrap().parse().unwrap();
        assert!((7_190..7_500).contains(&slept), "{slept}");
    }
    world.runtime.shutdown(None).await;
}
