//! The embedded store: one SQLite file, durable at every commit, written by one thread that groups what arrives.

mod calls;
mod clock;
mod connection;
mod deletion;
mod inspect;
mod leases;
mod rows;
mod schema;
mod turns;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outlast_core::ShardId;

use crate::arrival::Listener;
use crate::{Arrival, Error, VirtualClock};
use clock::StoreClock;
use connection::Connections;
use leases::Leases;

/// Shards of a new database.
const SHARDS: u16 = 64;

/// A SQLite database as a store.
pub struct SqliteStore {
    connections: Connections,
    leases: Leases,
    clock: StoreClock,
    listener: Listener,
    shards: u16,
}

impl SqliteStore {
    /// Opens `sqlite:path`, `sqlite://path`, `sqlite::memory:` or a plain path, which is taken as it is. A missing file is
    /// created.
    pub fn open(url: &str) -> Result<Self, Error> {
        let refuse = |what: &str| {
            Err(Error::Unusable(format!("{url:?} {what}: use sqlite:PATH, sqlite::memory: or a plain path")))
        };
        let Some(path) = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")) else {
            return match url {
                "" => refuse("names no database"),
                _ if url.contains("://") => refuse("is not a SQLite database"),
                ":memory:" => Self::open_in_memory(),
                path => Self::open_file(Path::new(path)),
            };
        };
        // Other programs write this parameter; it says what is done here anyway.
        match path.strip_suffix("?mode=rwc").unwrap_or(path) {
            "" => refuse("names no database"),
            ":memory:" => Self::open_in_memory(),
            path if path.contains('?') => refuse("has parameters, and none is known"),
            path => Self::open_file(Path::new(path)),
        }
    }

    /// A database in memory, gone with the process.
    pub fn open_in_memory() -> Result<Self, Error> {
        Self::with(None)
    }

    /// A database in memory whose time a test moves.
    pub fn open_in_memory_with_clock(clock: Arc<VirtualClock>) -> Result<Self, Error> {
        Ok(Self { clock: StoreClock::Virtual(clock), ..Self::with(None)? })
    }

    fn open_file(path: &Path) -> Result<Self, Error> {
        Self::with(Some(path.to_owned()))
    }

    fn with(path: Option<PathBuf>) -> Result<Self, Error> {
        let queries = Arc::new(AtomicU64::new(0));
        let opened = connection::open(path.as_deref(), queries)?;
        Ok(Self {
            connections: opened.connections,
            leases: Leases::new(path, opened.shards),
            clock: StoreClock::not_before(opened.last_write),
            listener: Listener::default(),
            shards: opened.shards,
        })
    }

    /// Sets who is told what has come for instances, as soon as it is durable.
    pub fn on_arrival(&self, listener: impl Fn(Arrival) + Send + Sync + 'static) {
        self.listener.set(listener);
    }

    /// Jobs that the database has done since it was opened; for tests of idleness.
    pub fn queries(&self) -> u64 {
        self.connections.queries.load(Ordering::Relaxed)
    }

    fn all_shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards).map(ShardId)
    }
}
