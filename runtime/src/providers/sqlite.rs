//! Embedded: a SQLite file and an in-process broker, nothing to install.

use std::sync::Arc;

use async_trait::async_trait;
use outlast_broker::Broker;
use outlast_broker::in_process::InProcessBroker;
use outlast_client::{Provider, carry_arrivals};
use outlast_storage::sqlite::SqliteStore;
use outlast_storage::{Error, Store, VirtualClock};

/// A SQLite database with an in-process broker. Runtimes of one process share it; clients of other processes may open the
/// same file.
pub struct SqliteProvider {
    store: Arc<SqliteStore>,
    broker: Arc<InProcessBroker>,
}

/// Settings of the SQLite store.
#[derive(Clone, Debug, Default)]
pub struct SqliteOptions {}

impl SqliteProvider {
    /// Opens `sqlite:path`, `sqlite::memory:` or a plain path; a missing file is created.
    pub async fn new(url: &str, _options: Option<SqliteOptions>) -> Result<Self, Error> {
        let url = url.to_owned();
        let opened = tokio::task::spawn_blocking(move || SqliteStore::open(&url)).await;
        Ok(Self::of(opened.map_err(|error| Error::Unusable(error.to_string()))??))
    }

    /// A database in memory, for tests.
    pub async fn new_in_memory() -> Result<Self, Error> {
        Self::new("sqlite::memory:", None).await
    }

    /// A database in memory whose time a test moves; `outlast::testing` drives it.
    pub(crate) fn in_memory_with_clock(clock: Arc<VirtualClock>) -> Result<Self, Error> {
        Ok(Self::of(SqliteStore::open_in_memory_with_clock(clock)?))
    }

    fn of(store: SqliteStore) -> Self {
        let broker = Arc::new(InProcessBroker::new());
        store.on_arrival(carry_arrivals(broker.clone()));
        Self { store: Arc::new(store), broker }
    }

    /// Statements and jobs that the database has done; for tests of idleness.
    pub fn queries(&self) -> u64 {
        self.store.queries()
    }
}

#[async_trait]
impl Provider for SqliteProvider {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn broker(&self) -> Arc<dyn Broker> {
        self.broker.clone()
    }
}
