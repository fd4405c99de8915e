//! What clients and runtimes need besides store and broker: somewhere to run tasks, and random bits. Time is tokio's.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::task::{AbortHandle, JoinHandle};

/// Surroundings made by a simulation, so that one seed decides everything.
pub trait Simulated: Send + Sync + 'static {
    /// 64 bits that tell things apart.
    fn random_bits(&self) -> u64;

    /// A task was spawned; aborting it drops what it holds.
    fn spawned(&self, task: AbortHandle);

    /// Decides what a task that is polled does.
    fn next_step(&self) -> Step;
}

/// What a task that is polled does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It goes on.
    Go,
    /// Others go first.
    Yield,
    /// It never goes on: its process is dead.
    Stop,
}

/// Where tasks run and random bits come from: the system, or a simulation.
#[derive(Clone, Default)]
pub struct Surroundings(Option<Arc<dyn Simulated>>);

impl Surroundings {
    /// The surroundings of a simulated process.
    pub fn simulated(by: Arc<dyn Simulated>) -> Self {
        Self(Some(by))
    }

    /// Whether own threads and the system's random bits may be used.
    pub fn is_system(&self) -> bool {
        self.0.is_none()
    }

    /// 64 random bits, for values that need not be secret.
    pub fn random_bits(&self) -> u64 {
        match &self.0 {
            None => {
                // Each half has a few fixed bits, at different places: xor covers them.
                let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
                high ^ low
            }
            Some(simulation) => simulation.random_bits(),
        }
    }

    /// Spawns a task on the current executor.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        match &self.0 {
            None => tokio::spawn(task),
            Some(simulation) => {
                let spawned = tokio::spawn(Steered { task: Box::pin(task), by: Arc::clone(simulation) });
                simulation.spawned(spawned.abort_handle());
                spawned
            }
        }
    }

    /// Runs a future spawned elsewhere, steered by the surroundings.
    pub async fn steer<F: Future>(&self, task: F) -> F::Output {
        match &self.0 {
            None => task.await,
            Some(simulation) => Steered { task: Box::pin(task), by: Arc::clone(simulation) }.await,
        }
    }
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_system() { "system" } else { "simulated" })
    }
}

/// A task whose every step the simulation decides.
struct Steered<F> {
    task: Pin<Box<F>>,
    by: Arc<dyn Simulated>,
}

impl<F: Future> Future for Steered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.by.next_step() {
            Step::Go => self.task.as_mut().poll(cx),
            Step::Yield => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Step::Stop => Poll::Pending,
        }
    }
}
