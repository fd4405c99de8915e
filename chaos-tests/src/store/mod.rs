//! A store in memory that many nodes share, each by a handle of its own. It keeps the guarantees of the seam while it does to
//! its callers what a distant database may do.
//!
//! Time is tokio's, so a paused runtime makes it virtual. Nothing here depends on anything but the seed and the order of calls.
//! The server outlives its clients: what is on its way when a handle is cut, or when a caller is dropped, is done all the same.

mod client_calls;
mod deletion;
mod faults;
mod inspect;
mod leases;
mod tables;
mod turns;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use outlast_core::{Millis, NodeId};
use outlast_storage::{Arrival, Error, FencedTurn, NodeInfo, TurnOutcome};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use faults::{Fate, Injector};
pub use faults::{Faults, Hits};
use tables::{Tables, Transaction};

/// What a simulated store is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many shards there are.
    pub shards: u16,
    /// How long a lease lasts.
    pub lease: Duration,
    /// Its time at the beginning.
    pub start: Millis,
    /// Where its faults are drawn from.
    pub seed: u64,
    /// What goes wrong.
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

/// One node's or client's way to the database.
pub struct SimulatedStore {
    server: Arc<SimulatedServer>,
    line: Arc<Line>,
    /// The nodes that this handle speaks for.
    joined: Mutex<BTreeMap<NodeId, NodeInfo>>,
    /// Since when every renewal has been answered.
    renewed_since: Mutex<Option<Instant>>,
}

/// What a call on its way needs of the handle that it came by.
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
    /// An empty database. Its time begins to run now, so this is called inside of a tokio runtime.
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

    /// From now on this goes wrong.
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

    /// Does one transaction. It is whole or not at all: whoever fails has changed nothing.
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
    /// Cuts this handle for ever: all its calls fail from now on, and it is told of nothing. What has been sent is on its way.
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

    /// Sets who is told what has come for instances, as soon as it is durable. The first one stays.
    pub fn on_arrival(&self, listener: impl Fn(Arrival) + Send + Sync + 'static) {
        let _first = self.line.listener.set(Box::new(listener));
    }

    /// A change that nobody is told of.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.change_then(work, |_| None).await
    }

    /// A change, and what its listener is told when it is durable.
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
                // A task of its own: the transaction is the server's business, whatever becomes of the caller.
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

    /// A read. Its answer may come late, and is old by then.
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
    Error::Unavailable(why.to_owned())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
