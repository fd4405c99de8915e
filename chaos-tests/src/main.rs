//! `./dev sim`: runs seeds of the simulation.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use outlast_chaos_tests::simulation::{self, Counts, Options, Outcome};

/// Seeds after which the medians so far are printed.
const PROGRESS_EVERY: usize = 500;

/// Runs nodes of the real runtime on a simulated store and a simulated broker, on virtual time. One seed decides everything.
#[derive(Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first one; drawn from the clock when it is not given, so that nobody chooses.
    #[arg(long)]
    from: Option<u64>,
    /// Run this seed alone and print all that happens in it.
    #[arg(long)]
    seed: Option<u64>,
    /// Leave out instances and faults of `--seed` for as long as it still fails.
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// Go on for so long, whatever `--seeds` says.
    #[arg(long)]
    minutes: Option<u64>,
    /// Print the digest of each seed's trace, and nothing else: two runs print the same.
    #[arg(long)]
    digests: bool,
    /// Show what the nodes log.
    #[arg(long)]
    logs: bool,
    /// Threads that run seeds; as many as there are cores by default.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Code that is to panic does so by the thousand.
    std::panic::set_hook(Box::new(|_| {}));
    if !arguments.logs {
        // The nodes would log what they find; a subscriber that is there already stays.
        let _first = tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::new());
    }
    match arguments.seed {
        Some(seed) => one(seed, arguments.shrink),
        None if arguments.digests => digests(&arguments),
        None => many(&arguments),
    }
}

fn one(seed: u64, shrink: bool) -> ExitCode {
    let options = Options { keep_lines: true, ..Options::default() };
    let options = if shrink { smallest(seed, options) } else { options };
    let outcome = simulation::run(seed, options);
    outcome.lines.iter().for_each(|line| println!("{line}"));
    println!("digest {:016x}", outcome.digest);
    report(&outcome)
}

/// Fewer instances, then fewer faults, with which a seed still fails; found by halving.
fn smallest(seed: u64, mut options: Options) -> Options {
    let fails = |options: Options| !simulation::run(seed, options).wrong.is_empty();
    if !fails(options) {
        println!("it does not fail: there is nothing to leave out");
        return options;
    }
    for (least, set) in [
        (1, (|options, max| Options { instances_max: Some(max), ..options }) as fn(Options, usize) -> Options),
        (0, |options, max| Options { faults_max: Some(max), ..options }),
    ] {
        // More than any seed has.
        let (mut low, mut high) = (least, 1_024);
        while low < high {
            let middle = usize::midpoint(low, high);
            if fails(set(options, middle)) { high = middle } else { low = middle + 1 }
        }
        options = set(options, high);
    }
    println!("fails with the first {:?} instances and {:?} faults", options.instances_max, options.faults_max);
    options
}

fn digests(arguments: &Arguments) -> ExitCode {
    for seed in (arguments.from.unwrap_or(1)..).take(usize::try_from(arguments.seeds).unwrap_or(usize::MAX)) {
        println!("{seed} {:016x}", simulation::run(seed, Options::default()).digest);
    }
    ExitCode::SUCCESS
}

fn report(outcome: &Outcome) -> ExitCode {
    for wrong in &outcome.wrong {
        println!("seed {}: {wrong}", outcome.seed);
    }
    if outcome.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn many(arguments: &Arguments) -> ExitCode {
    let from = arguments.from.unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        u64::from(now.subsec_nanos()) << 20 | now.as_secs() & 0xf_ffff
    });
    let (begun, next, failed) = (Instant::now(), AtomicU64::new(0), AtomicBool::new(false));
    let limit = arguments.minutes.map(|minutes| Duration::from_secs(minutes * 60));
    let is_over = |done: u64| limit.map_or(done >= arguments.seeds, |limit| begun.elapsed() >= limit);
    let counts = Mutex::new(Vec::new());
    let threads = arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    println!("seeds from {from}, on {threads} threads");
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let done = next.fetch_add(1, Ordering::Relaxed);
                    if is_over(done) {
                        return;
                    }
                    let outcome = simulation::run(from + done, Options::default());
                    if !outcome.wrong.is_empty() {
                        failed.store(true, Ordering::Relaxed);
                        println!("seed {} fails; its last lines:", outcome.seed);
                        outcome.lines.iter().rev().take(30).rev().for_each(|line| println!("    {line}"));
                        report(&outcome);
                    }
                    let mut counts = counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    counts.push(outcome.counts);
                    if counts.len() % PROGRESS_EVERY == 0 {
                        println!(
                            "{} seeds in {:.0} s: {}",
                            counts.len(),
                            begun.elapsed().as_secs_f64(),
                            medians(&counts)
                        );
                    }
                }
            });
        }
    });
    let counts = counts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!("{} seeds from {from} in {:.0} s: {}", counts.len(), begun.elapsed().as_secs_f64(), medians(&counts));
    if failed.load(Ordering::Relaxed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn medians(counts: &[Counts]) -> String {
    let median = |of| simulation::median(counts, of);
    format!(
        "medians: {} processes, {} instances, {} events, {} attempts, {} faults, {} refused turns, {} s",
        median(|counts| counts.processes),
        median(|counts| counts.instances),
        median(|counts| counts.events),
        median(|counts| counts.attempts),
        median(|counts| counts.faults),
        median(|counts| counts.fenced),
        median(|counts| counts.elapsed.as_secs()),
    )
}
