//! The store of a cluster: Postgres holds everything durable, and its clock is the only clock.
//!
//! Whatever belongs to one durable step is one call of a function in the database (`sql/functions/`): one round trip,
//! and never a transaction that waits for a client.

mod address;
mod candidates;
mod checks;
mod client_calls;
mod clock;
mod commit;
mod connect;
mod escaped_text;
mod executor;
mod failure;
mod functions;
mod inspect;
mod large_instances;
mod leases;
mod node_row;
mod pool;
mod reads;
mod roles;
mod rows;
mod schema;
mod set_back;
mod trips;
mod turn_arrays;
mod turns;

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outlast_core::RefusedOption;
use tokio::runtime::Handle;

use crate::arrival::Listener;
use crate::{Arrival, Error};
use client_calls::Calls;
use clock::ServerClock;
use connect::Pools;
use reads::Reads;
pub use roles::Roles;
use set_back::Joined;

/// A dead node is forgotten after so many leases: late enough for a paused process to find its row again, a minute by default.
const FORGET_AFTER_LEASES: u32 = 12;

/// Settings of a Postgres store.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// The schema that holds the tables (default `outlast`). Several may share one database without seeing each other.
    pub schema: String,
    /// How long a node is taken for alive after it was last heard (default 5 s).
    pub lease: Duration,
    /// Shards of a new schema (default 64); they cannot be changed later.
    pub shards: u16,
    /// Connections for reading and for client calls (default 8); two more are kept for commits and leases.
    pub connections: u32,
    /// Whether a missing or older schema is brought up to date at connect (default true). Without it, use
    /// [`PostgresStore::migrate`] from a role that may create tables.
    pub migrate: bool,
}

/// Shorter leases end between two renewals, and longer ones keep the shards of a dead node for a day.
const LEASES: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);
/// A node that is alone subscribes to the messages of all of them.
const SHARDS_MAX: u16 = 8_192;
/// More than any server takes.
const CONNECTIONS_MAX: u32 = 10_000;

impl PostgresOptions {
    /// Refuses values that cannot work.
    fn check(&self) -> Result<(), Error> {
        // Named one by one, so that a new option is not forgotten here. A schema's name is checked where it is used.
        let Self { schema: _, lease, shards, connections, migrate: _ } = self;
        RefusedOption::unless_in("PostgresOptions::lease", lease, LEASES)?;
        RefusedOption::unless_in("PostgresOptions::shards", shards, 1..=SHARDS_MAX)?;
        Ok(RefusedOption::unless_in("PostgresOptions::connections", connections, 1..=CONNECTIONS_MAX)?)
    }
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { schema: "outlast".to_owned(), lease: Duration::from_secs(5), shards: 64, connections: 8, migrate: true }
    }
}

/// A schema of a Postgres database as a store.
pub struct PostgresStore {
    pools: Pools,
    clock: Arc<ServerClock>,
    calls: Calls,
    reads: Reads,
    listener: Listener,
    /// Where the store was opened: what must not end with its caller runs there.
    executor: Handle,
    lease: Duration,
    shards: u16,
    /// Since when every renewal has succeeded; an outage of the store must not look like the death of all others.
    connected_since: Mutex<Option<Instant>>,
    /// Nodes of this process.
    joined: Mutex<Vec<Joined>>,
}

impl PostgresStore {
    /// Connects to `postgres://user:password@host/database`, checks the server, and prepares the schema.
    pub async fn connect(url: &str, options: PostgresOptions) -> Result<Self, Error> {
        let opened = connect::open(url, &options).await?;
        let (clock, listener) = (Arc::new(ServerClock::new(opened.now)), Listener::default());
        Ok(Self {
            calls: Calls::start(&opened.pools.general, &clock, &listener),
            reads: Reads::start(&opened.pools.general),
            pools: opened.pools,
            clock,
            listener,
            executor: Handle::current(),
            lease: options.lease,
            shards: opened.shards,
            connected_since: Mutex::default(),
            joined: Mutex::default(),
        })
    }

    /// Sets who is told what has come for instances, as soon as it is durable.
    pub fn on_arrival(&self, listener: impl Fn(Arrival) + Send + Sync + 'static) {
        self.listener.set(listener);
    }

    /// Brings the schema of a database up to date; for a role that may create tables.
    pub async fn migrate(url: &str, options: &PostgresOptions) -> Result<(), Error> {
        let options = PostgresOptions { migrate: true, ..options.clone() };
        connect::open(url, &options).await.map(drop)
    }
}
