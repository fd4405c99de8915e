//! A simulated process: a node or a client with its own way to store and broker, whose tasks and random bits the seed decides.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use outlast::providers::Provider;
use outlast::{Simulated, Step, Surroundings};
use outlast_broker::Broker;
use outlast_storage::Store;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::dice::Dice;
use crate::broker::{SimulatedBroker, SimulatedBrokerServer};
use crate::lock::locked;
use crate::store::{SimulatedServer, SimulatedStore};

/// A ready task lets others go first once in so many steps.
const YIELDS_ONE_IN: u64 = 6;
/// Steps at one moment after which nobody waits for time to go on: tasks wake each other without end.
const STEPS_AT_ONCE_MAX: u64 = 300_000;
/// Tasks that are remembered before those that have ended are forgotten.
const TASKS_SWEEP: usize = 256;

/// What a process is attached to.
pub(super) struct Process {
    pub(super) store: Arc<SimulatedStore>,
    pub(super) broker: Arc<SimulatedBroker>,
    life: Arc<Life>,
}

/// The `number`-th process of a seed.
pub(super) struct Numbered {
    pub(super) seed: u64,
    pub(super) number: u64,
}

/// Notices that time stands still.
pub(super) struct Pace(Mutex<(Instant, u64)>);

impl Pace {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new((Instant::now(), 0))))
    }

    pub(super) fn has_stopped(&self) -> bool {
        locked(&self.0).1 > STEPS_AT_ONCE_MAX
    }

    fn step(&self) -> bool {
        let now = Instant::now();
        let mut pace = locked(&self.0);
        match &mut *pace {
            (_, steps) if *steps > STEPS_AT_ONCE_MAX => return false,
            (at, steps) if *at == now => *steps += 1,
            other => *other = (now, 0),
        }
        true
    }
}

/// How its tasks are run.
struct Life {
    dice: Mutex<Dice>,
    order: Mutex<Dice>,
    tasks: Mutex<Vec<AbortHandle>>,
    is_dead: AtomicBool,
    pace: Arc<Pace>,
}

impl Process {
    pub(super) fn new(
        store: &Arc<SimulatedServer>,
        broker: &Arc<SimulatedBrokerServer>,
        pace: &Arc<Pace>,
        Numbered { seed, number }: Numbered,
    ) -> Arc<Self> {
        let (store, broker) = (Arc::new(store.connect()), Arc::new(broker.connect()));
        store.on_arrival(outlast::carry_arrivals(broker.clone()));
        let dice = |stream| Mutex::new(Dice::new(seed, 1_000 + number * 2 + stream));
        let life = Life {
            dice: dice(0),
            order: dice(1),
            tasks: Mutex::default(),
            is_dead: AtomicBool::new(false),
            pace: Arc::clone(pace),
        };
        Arc::new(Self { store, broker, life: Arc::new(life) })
    }

    /// First nothing of it reaches store and broker any more, then its tasks are gone, wherever they were waiting.
    pub(super) fn kill(&self) {
        self.store.cut();
        self.broker.cut();
        self.life.is_dead.store(true, Ordering::Relaxed);
        for task in locked(&self.life.tasks).drain(..) {
            task.abort();
        }
    }
}

impl Simulated for Life {
    fn random_bits(&self) -> u64 {
        locked(&self.dice).bits()
    }

    fn spawned(&self, task: AbortHandle) {
        let mut tasks = locked(&self.tasks);
        if tasks.len() % TASKS_SWEEP == TASKS_SWEEP - 1 {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(task);
    }

    fn next_step(&self) -> Step {
        if self.is_dead.load(Ordering::Relaxed) || !self.pace.step() {
            return Step::Stop;
        }
        if locked(&self.order).one_in(YIELDS_ONE_IN) { Step::Yield } else { Step::Go }
    }
}

#[async_trait]
impl Provider for Process {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn broker(&self) -> Arc<dyn Broker> {
        self.broker.clone()
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings::simulated(self.life.clone())
    }
}
