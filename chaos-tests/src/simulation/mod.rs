//! Several nodes of the real runtime in one thread, on virtual time, with one seed for everything.
//!
//! A seed decides the programs, what clients do and when, which faults there are, every random bit of the nodes and in which order
//! ready tasks go on. So a failing seed fails again, and two runs of one seed are the same to the byte ([`Trace`]).

mod checks;
mod code;
mod dice;
mod driver;
mod faults;
mod process;
mod program;
mod trace;

use std::time::Duration;

pub use trace::Trace;

/// What a run of one seed came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What was wrong; empty when all was right.
    pub wrong: Vec<String>,
    /// What has happened.
    pub counts: Counts,
    /// A number that two runs share if all their lines are the same.
    pub digest: u64,
    /// The last lines, or all of them where that was asked for.
    pub lines: Vec<String>,
}

/// How large a run was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Processes that were started: nodes and clients.
    pub processes: u64,
    /// Instances that were started, children not counted.
    pub instances: u64,
    /// Events in all histories at the end.
    pub events: u64,
    /// Times that activities ran.
    pub attempts: u64,
    /// Faults that hit something: a node that died, calls that failed or came late, items that were lost.
    pub faults: u64,
    /// Turns that were refused because of a lost lease.
    pub fenced: u64,
    /// How much time went by in the simulation.
    pub elapsed: Duration,
}

/// The median of a count over several runs.
pub fn median(runs: &[Counts], count: fn(&Counts) -> u64) -> u64 {
    let mut values: Vec<u64> = runs.iter().map(count).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// How a seed is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Keep all lines of the trace.
    pub keep_lines: bool,
    /// Run no more than so many instances of those that the seed has.
    pub instances_max: Option<usize>,
    /// Leave out all faults but the first so many.
    pub faults_max: Option<usize>,
}

/// Runs one seed, on the current thread.
pub fn run(seed: u64, options: Options) -> Outcome {
    let executor = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let executor = executor.expect("a thread can have an executor without drivers of its own");
    executor.block_on(driver::run(seed, options))
}
