//! Goal: whoever is killed, the farm's picture is complete and right, and none of its processes outlives the driver.
//! Method: the built program runs its demo small, in a namespace of the test's own, on the servers that the environment
//! names; processes are recognised by that namespace in their environment.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// Far more than a small demo takes, so that only one that hangs meets it.
const PATIENCE: Duration = Duration::from_secs(100);
/// Longest time in which a process notices that its driver is gone, gives its activity time to end, and leaves.
const END_MAX: Duration = Duration::from_secs(60);

/// One run of the demo: 256x256 pixels in 64 tiles.
struct Demo {
    namespace: String,
    directory: tempfile::TempDir,
    driver: Child,
}

impl Demo {
    fn start(iterations: u32) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        for name in ["OUTLAST_POSTGRES_URL", "OUTLAST_NATS_URL"] {
            assert!(std::env::var(name).is_ok(), "set {name}, or run ./dev test, which starts the servers");
        }
        let now = UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let namespace = format!("farm{}_{}_{now}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::tempdir().unwrap();
        let driver = Command::new(env!("CARGO_BIN_EXE_render-farm"))
            .args(["demo", "--width=256", "--height=256", "--tile=32", &format!("--iterations={iterations}")])
            .args(["--kill-gpu=1", "--kill-orchestrators=1", "--kill-cpu=0", "--slots=1"])
            .arg("--out")
            .arg(directory.path().join("out.png"))
            .env("OUTLAST_NAMESPACE", &namespace)
            // Where it keeps the logs of its processes.
            .env("TMPDIR", directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { namespace, directory, driver }
    }

    /// Waits for the order: by then all processes are started.
    fn wait_for_order(&mut self) {
        let stdout = BufReader::new(self.driver.stdout.as_mut().unwrap());
        assert!(stdout.lines().any(|line| line.unwrap().starts_with("ordered")), "the demo does not start");
    }

    fn signal(&self, signal: &str) {
        let pid = self.driver.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// The living processes of this demo.
    fn processes(&self) -> Vec<String> {
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        processes.filter(|process| self.owns(process)).map(|process| process.display().to_string()).collect()
    }

    fn owns(&self, process: &Path) -> bool {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        let ours = format!("OUTLAST_NAMESPACE={}", self.namespace);
        environment.split(|byte| *byte == 0).any(|variable| variable == ours.as_bytes())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn wait_until(limit: Duration, done: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

#[test]
fn the_picture_is_right_although_a_worker_and_an_orchestrator_are_killed() {
    let mut demo = Demo::start(2_000);
    let begun = Instant::now();
    while demo.driver.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            demo.driver.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = demo.driver.wait().unwrap();
    let text = |pipe: &mut dyn std::io::Read| std::io::read_to_string(pipe).unwrap();
    let output = text(demo.driver.stdout.as_mut().unwrap());
    assert!(status.success(), "{status}\n{output}\n{}", text(demo.driver.stderr.as_mut().unwrap()));
    for part in [
        "killed gpu1 ",
        "killed orchestrator1 ",
        "64 tiles rendered by gpu",
        "8 strips joined by cpu",
        "7 processes are ready; those that were not killed count ",
        "the same, byte for byte",
        "2 processes killed and replaced, nothing lost",
    ] {
        assert!(output.contains(part), "{part:?} is missing in:\n{output}");
    }
    // What the processes count themselves: at least the turns and activities of the last strip.
    let census: Vec<f64> = output
        .lines()
        .find(|line| line.contains("are ready"))
        .unwrap()
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!(matches!(census[..], [7.0, turns, activities] if turns > 8.0 && activities > 8.0), "{census:?}");
    assert!(fs::read(demo.directory.path().join("out.png")).unwrap().starts_with(b"\x89PNG"));
    assert_eq!(demo.processes(), [""; 0]);
}

#[test]
fn no_process_outlives_a_driver_that_is_interrupted_or_killed() {
    for signal in ["-INT", "-KILL"] {
        let mut demo = Demo::start(1_000_000);
        demo.wait_for_order();
        assert_eq!(demo.processes().len(), 8, "the driver and its seven processes");
        demo.signal(signal);
        assert!(!demo.driver.wait().unwrap().success());
        let ended = wait_until(END_MAX, || demo.processes().is_empty());
        assert!(ended, "after {signal} there are still {:?}", demo.processes());
    }
}
