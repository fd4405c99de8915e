//! Embedded: a SQLite file and an in-process broker, nothing to install.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use outlast_broker::Broker;
use outlast_broker::in_process::InProcessBroker;
use outlast_client::{Provider, carry_arrivals};
use outlast_core::Reason;
use outlast_storage::sqlite::{Address, FileId, SqliteStore};
use outlast_storage::{Error, Store, VirtualClock};

/// A SQLite database with an in-process broker. Runtimes of one process share it, even if each opens the file through its own
/// provider and under another name; clients in other processes may open the same file.
#[derive(Clone)]
pub struct SqliteProvider {
    store: Arc<SqliteStore>,
    broker: Arc<InProcessBroker>,
}

/// The files that are open in this process.
static OPEN: Mutex<Vec<Shared>> = Mutex::new(Vec::new());

/// A file that is open as long as somebody uses its store.
struct Shared {
    id: FileId,
    store: Weak<SqliteStore>,
    broker: Weak<InProcessBroker>,
}

impl Shared {
    fn get(&self) -> Option<SqliteProvider> {
        Some(SqliteProvider { store: self.store.upgrade()?, broker: self.broker.upgrade()? })
    }
}

/// Settings of the SQLite store.
#[derive(Clone, Debug, Default)]
pub struct SqliteOptions {}

impl SqliteProvider {
    /// Opens `sqlite:path`, `sqlite::memory:` or a plain path; a missing file is created.
    pub async fn new(url: &str, _options: Option<SqliteOptions>) -> Result<Self, Error> {
        let url = url.to_owned();
        let opened = tokio::task::spawn_blocking(move || Self::open(&url)).await;
        opened.map_err(|error| Error::unusable(Reason::of(error)))?
    }

    /// A database in memory, for tests.
    pub async fn new_in_memory() -> Result<Self, Error> {
        Self::new("sqlite::memory:", None).await
    }

    /// A database in memory, with options.
    pub async fn new_in_memory_with_options(options: Option<SqliteOptions>) -> Result<Self, Error> {
        Self::new("sqlite::memory:", options).await
    }

    /// A database in memory whose time a test moves; `outlast::testing` drives it.
    pub(crate) fn in_memory_with_clock(clock: Arc<VirtualClock>) -> Result<Self, Error> {
        Ok(Self::of(SqliteStore::open_in_memory_with_clock(clock)?))
    }

    /// The provider of a file that is open in this process already, or a new one.
    fn open(url: &str) -> Result<Self, Error> {
        let address = Address::parse(url)?;
        // Held while the file is opened, so that two that open it at once share one store.
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|shared| shared.store.strong_count() > 0);
        let id = address.file_id();
        if let Some(provider) = open.iter().filter(|shared| Some(&shared.id) == id.as_ref()).find_map(Shared::get) {
            return Ok(provider);
        }
        let provider = Self::of(SqliteStore::open(url)?);
        // Asked again: there may have been no file before it was opened.
        if let Some(id) = provider.store.file_id() {
            let (store, broker) = (Arc::downgrade(&provider.store), Arc::downgrade(&provider.broker));
            open.push(Shared { id: id.clone(), store, broker });
        }
        Ok(provider)
    }

    fn of(store: SqliteStore) -> Self {
        let broker = Arc::new(InProcessBroker::new());
        store.on_arrival(carry_arrivals(broker.clone()));
        Self { store: Arc::new(store), broker }
    }

    /// Counts the activities that are queued or running.
    pub(crate) fn outstanding(&self) -> Arc<AtomicUsize> {
        self.broker.outstanding()
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
