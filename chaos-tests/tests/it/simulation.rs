//! Goal: whatever happens to nodes, store and broker, instances come to the end that their programs have; and a seed says all of it.
//! `./dev sim` runs more seeds, others each time.

use std::ops::Range;
use std::process::Command;

use outlast_chaos_tests::simulation::{self, Options};

/// Seeds that two processes run.
const SAME: u64 = 100;

/// Before anything else is believed of it.
#[test]
fn two_processes_run_a_seed_in_the_same_way() {
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outlast-chaos-tests"));
        let run = command.args(["--digests", "--from", "1", "--seeds", &SAME.to_string()]).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stdout).unwrap()
    };
    let (one, other) = (std::thread::spawn(run), std::thread::spawn(run));
    let (one, other) = (one.join().unwrap(), other.join().unwrap());
    assert_eq!(one.lines().count() as u64, SAME);
    let differs = one.lines().zip(other.lines()).find(|(one, other)| one != other);
    assert!(differs.is_none(), "`./dev sim --seed N` of the first that differs, twice, shows where: {differs:?}");
}

/// A thousand seeds, fifty by each test.
macro_rules! fifties {
    ($($name:ident: $first:literal),+ $(,)?) => {
        $(#[test] fn $name() { nothing_is_wrong_in($first..$first + 50); })+
    };
}

fifties!(
    seeds_1_to_50: 1,
    seeds_51_to_100: 51,
    seeds_101_to_150: 101,
    seeds_151_to_200: 151,
    seeds_201_to_250: 201,
    seeds_251_to_300: 251,
    seeds_301_to_350: 301,
    seeds_351_to_400: 351,
    seeds_401_to_450: 401,
    seeds_451_to_500: 451,
    seeds_501_to_550: 501,
    seeds_551_to_600: 551,
    seeds_601_to_650: 601,
    seeds_651_to_700: 651,
    seeds_701_to_750: 701,
    seeds_751_to_800: 751,
    seeds_801_to_850: 801,
    seeds_851_to_900: 851,
    seeds_901_to_950: 901,
    seeds_951_to_1000: 951,
);

fn nothing_is_wrong_in(seeds: Range<u64>) {
    // Code that is to panic does so by the thousand, and nodes log what they meet. One of the tests of a process is the first.
    std::panic::set_hook(Box::new(|_| {}));
    let _first = tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::new());
    let mut counts = Vec::new();
    let mut wrong = Vec::new();
    for seed in seeds {
        let outcome = simulation::run(seed, Options::default());
        counts.push(outcome.counts);
        wrong.extend(outcome.wrong.into_iter().map(|wrong| format!("seed {seed}: {wrong}")));
    }
    drop(std::panic::take_hook());
    assert!(wrong.is_empty(), "`./dev sim --seed N` shows how it comes about:\n{}", wrong.join("\n"));
    // A run that meets nothing proves nothing.
    let median = |of| simulation::median(&counts, of);
    assert!(median(|counts| counts.instances) >= 10);
    assert!(median(|counts| counts.events) >= 200);
    assert!(median(|counts| counts.faults) >= 50);
    assert!(counts.iter().any(|counts| counts.fenced > 0), "no zombie was refused");
}
