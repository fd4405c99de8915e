//! A store in memory that many nodes share, each by a handle of its own. It keeps the guarantees of the store traits, but its
//! callers meet the faults of a remote database.
//!
//! Time is tokio's, so a paused runtime makes it virtual. Behaviour depends only on the seed and the order of calls.
//! The server outlives its clients: it still does a request that is on its way when the handle is cut or the caller dropped.

mod client_calls;
mod deletion;
mod faults;
mod inspect;
mod leases;
mod tables;
mod turns;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use outlast_core::{Millis, NodeId};
use outlast_storage::{Arrival, Error, FencedTurn, NodeInfo, TurnOutcome};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use faults::{Fate, Injector};
pub use faults::{Faults, Hits};
use tables::{Tables, Transaction};

use crate::lock::locked;

/// Options of a simulated store.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many shards there are.
    pub shards: u16,
    /// How long a lease lasts.
    pub lease: Duration,
    /// The server's time at the beginning.
    pub start: Millis,
    /// The seed of its faults.
    pub seed: u64,
    /// How often each fault occurs.
    pub faults: Faults,
}

impl Default for Options {
    fn default() -> Self {
        let start = Millis(1_700_000_000_000);
        Self { shards: 64, lease: Duration::from_secs(5), start, seed: 0, faults: Faults::default() }
    }
}

/// The database: what all handles share.
pub struct SimulatedServer {
    options: Options,
    begun: Instant,
    tables: Mutex<Tables>,
    injector: Mutex<Injector>,
    witness: OnceLock<Box<Witness>>,
}

/// One node's or client's connection to the database.
pub struct SimulatedStore {
    server: Arc<SimulatedServer>,
    line: Arc<Line>,
    /// The nodes that this handle speaks for.
    joined: Mutex<BTreeMap<NodeId, NodeInfo>>,
    /// Since when every renewal has succeeded.
    renewed_since: Mutex<Option<Instant>>,
}

/// The part of a handle that a call needs while it is on its way.
#[derive(Default)]
struct Line {
    is_cut: AtomicBool,
    is_interrupted: AtomicBool,
    listener: OnceLock<Box<Told>>,
}

/// Is shown each turn and what became of it.
type Witness = dyn Fn(&FencedTurn, &TurnOutcome) + Send + Sync;
type Told = dyn Fn(Arrival) + Send + Sync;

impl SimulatedServer {
    /// An empty database. Its clock starts now, so call this inside a tokio runtime.
    pub fn new(options: Options) -> Arc<Self> {
        let injector = Mutex::new(Injector::new(options.seed, options.faults.clone()));
        let tables = Mutex::new(Tables::new(options.shards));
        Arc::new(Self { options, begun: Instant::now(), tables, injector, witness: OnceLock::new() })
    }

    /// A new handle.
    pub fn connect(self: &Arc<Self>) -> SimulatedStore {
        SimulatedStore {
            server: Arc::clone(self),
            line: Arc::default(),
            joined: Mutex::default(),
            renewed_since: Mutex::default(),
        }
    }

    /// Sets who is shown each turn that comes, and what became of it. The first one stays.
    pub fn on_commit(&self, witness: impl Fn(&FencedTurn, &TurnOutcome) + Send + Sync + 'static) {
        let _first = self.witness.set(Box::new(witness));
    }

    /// Sets the faults from now on.
    pub fn set_faults(&self, faults: Faults) {
        locked(&self.injector).faults = faults;
    }

    /// What has gone wrong so far.
    pub fn hits(&self) -> Hits {
        locked(&self.injector).hits
    }

    fn now(&self) -> Millis {
        self.options.start.plus(self.begun.elapsed())
    }

    /// Runs one transaction. Nothing is rolled back, so `work` must not fail after its first change.
    fn transact<T>(
        &self,
        number: u64,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let now = self.now();
        let mut tables = locked(&self.tables);
        let done = work(&mut Transaction::new(&mut tables, number, now));
        tables.close(number);
        done
    }
}

impl SimulatedStore {
    /// Cuts this handle for ever: its calls fail from now on, and its listener hears nothing more. Sent requests are still done.
    pub fn cut(&self) {
        self.line.is_cut.store(true, Ordering::Relaxed);
    }

    /// Interrupts this handle, until it is resumed.
    pub fn interrupt(&self) {
        self.line.is_interrupted.store(true, Ordering::Relaxed);
    }

    /// Ends an interruption.
    pub fn resume(&self) {
        self.line.is_interrupted.store(false, Ordering::Relaxed);
    }

    /// Sets the listener that is told of new messages once they are durable. Only the first call has an effect.
    pub fn on_arrival(&self, listener: impl Fn(Arrival) + Send + Sync + 'static) {
        let _first = self.line.listener.set(Box::new(listener));
    }

    /// Makes a change that the listener is not told of.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.change_then(work, |_| None).await
    }

    /// Makes a change, and tells the listener of `arrival` once it is durable.
    async fn change_then<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error> + Send + 'static,
        arrival: impl FnOnce(&T) -> Option<Arrival> + Send + 'static,
    ) -> Result<T, Error> {
        self.line.check()?;
        let fate = locked(&self.server.injector).of_change();
        if fate == Fate::Lost {
            return Err(unavailable("the request was lost"));
        }
        // Numbered before any delay: rows of delayed transactions must become visible out of order. A lost request opens none.
        let number = locked(&self.server.tables).open();
        let (server, line) = (Arc::clone(&self.server), Arc::clone(&self.line));
        let done = match fate {
            Fate::Plain | Fate::Lost => line.tell(server.transact(number, work), arrival),
            Fate::AnswerLost => {
                line.tell(server.transact(number, work), arrival)?;
                Err(unavailable("the answer was lost"))
            }
            Fate::Delayed { before, after } => {
                let (answer, answered) = oneshot::channel();
                // A task of its own: the server does the transaction even if the caller is dropped.
                tokio::spawn(async move {
                    sleep(before).await;
                    let done = line.tell(server.transact(number, work), arrival);
                    sleep(after).await;
                    // The caller may be gone.
                    let _answered = answer.send(done);
                });
                answered.await.unwrap_or_else(|_| Err(unavailable("the server has gone away")))
            }
        };
        // The handle may have been cut while the answer was on its way: then nobody hears it.
        self.line.check()?;
        done
    }

    /// Reads. The answer may come late, and is old by then.
    async fn read<T>(&self, work: impl FnOnce(&Tables, Millis) -> T) -> Result<T, Error> {
        self.line.check()?;
        let late = locked(&self.server.injector).of_read()?;
        let found = work(&locked(&self.server.tables), self.server.now());
        if let Some(late) = late {
            sleep(late).await;
            self.line.check()?;
        }
        Ok(found)
    }
}

impl Line {
    fn check(&self) -> Result<(), Error> {
        if self.is_cut.load(Ordering::Relaxed) {
            return Err(unavailable("this handle was cut"));
        }
        match self.is_interrupted.load(Ordering::Relaxed) {
            true => Err(unavailable("this handle is interrupted")),
            false => Ok(()),
        }
    }

    fn tell<T>(&self, done: Result<T, Error>, arrival: impl FnOnce(&T) -> Option<Arrival>) -> Result<T, Error> {
        if let (Ok(done), Some(listener), Ok(())) = (&done, self.listener.get(), self.check())
            && let Some(arrival) = arrival(done)
        {
            listener(arrival);
        }
        done
    }
}

fn unavailable(why: &str) -> Error {
    Error::unavailable(why)
}
