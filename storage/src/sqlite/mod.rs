//! The embedded store: one SQLite file, durable at every commit, written by one thread that groups what arrives.

mod address;
mod candidates;
mod client_calls;
mod clock;
mod connection;
mod deletion;
mod failure;
mod file;
mod inspect;
mod leases;
mod rows;
mod schema;
mod turns;
mod vacuum;
mod write_job;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::arrival::Listener;
use crate::{Arrival, Error, VirtualClock};
pub use address::Address;
pub use clock::MachineClock;
use clock::{StoreClock, ThisMachine};
use connection::Connections;
use file::DatabaseFile;
pub use file::FileId;
use leases::Leases;

const TARGET: &str = "outlast::storage";
/// Shards of a new database, as many as a cluster has by default. One process holds them all.
const SHARDS: u16 = 64;

/// A SQLite database as a store.
pub struct SqliteStore {
    connections: Connections,
    file: Option<Arc<DatabaseFile>>,
    leases: Leases,
    clock: StoreClock,
    listener: Listener,
    shards: u16,
}

impl SqliteStore {
    /// Opens what [`Address::parse`] reads. A missing file is created.
    pub fn open(address: &str) -> Result<Self, Error> {
        Self::open_on(address, Arc::new(ThisMachine::default()))
    }

    /// [`SqliteStore::open`] on a machine whose clocks a test has.
    pub fn open_on(address: &str, machine: Arc<dyn MachineClock>) -> Result<Self, Error> {
        match Address::parse(address)? {
            Address::Memory => Self::with(None, machine),
            Address::File(path) => Self::with(Some(Arc::new(DatabaseFile::open(&path)?)), machine),
        }
    }

    /// A database in memory, gone with the process.
    pub fn open_in_memory() -> Result<Self, Error> {
        Self::with(None, Arc::new(ThisMachine::default()))
    }

    /// A database in memory whose time a test moves.
    pub fn open_in_memory_with_clock(clock: Arc<VirtualClock>) -> Result<Self, Error> {
        Ok(Self { clock: StoreClock::Virtual(clock), ..Self::open_in_memory()? })
    }

    fn with(file: Option<Arc<DatabaseFile>>, machine: Arc<dyn MachineClock>) -> Result<Self, Error> {
        let opened = connection::open(file.as_ref(), Arc::new(AtomicU64::new(0)))?;
        Ok(Self {
            connections: opened.connections,
            leases: Leases::new(file.clone(), opened.shards),
            file,
            clock: StoreClock::not_before(opened.last_write, machine),
            listener: Listener::default(),
            shards: opened.shards,
        })
    }

    /// The file that is open; `None` for a database in memory.
    pub fn file_id(&self) -> Option<&FileId> {
        self.file.as_ref().map(|file| &file.id)
    }

    /// Sets who is told what has come for instances, as soon as it is durable.
    pub fn on_arrival(&self, listener: impl Fn(Arrival) + Send + Sync + 'static) {
        self.listener.set(listener);
    }

    /// Jobs that the database has done since it was opened; for tests of idleness.
    pub fn queries(&self) -> u64 {
        self.connections.queries.load(Ordering::Relaxed)
    }
}
