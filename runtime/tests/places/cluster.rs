//! Real Postgres and a real nats-server, in a namespace of the test's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use outlast::providers::Provider;
use outlast::providers::cluster::{ClusterOptions, ClusterProvider};

/// Where a test runs.
pub(crate) struct Place {
    pub(crate) options: ClusterOptions,
}

impl Default for Place {
    fn default() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let url = |name| {
            std::env::var(name).unwrap_or_else(|_| panic!("set {name}, or run ./dev test, which starts the servers"))
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
        let namespace = format!("t{}_{}_{now}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut options = ClusterOptions::new(url("OUTLAST_POSTGRES_URL"), url("OUTLAST_NATS_URL"))
            .namespace(&namespace)
            .lease(Duration::from_secs(3));
        options.postgres.connections = 4;
        Self { options }
    }
}

impl Place {
    /// The provider, anew after a restart.
    pub(crate) async fn open(&self) -> Arc<dyn Provider> {
        Arc::new(ClusterProvider::connect(self.options.clone()).await.unwrap())
    }
}
