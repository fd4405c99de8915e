//! Peers are programs of a workspace of their own, so that nobody compiles them who does not ask for it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::measure::Figures;
use crate::workload::{Size, Workload};

/// The peers that there are.
const PEERS: [&str; 1] = ["duroxide-sqlite"];

fn program(peer: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers/target/release").join(peer)
}

/// The peers whose programs are built; how to build them stands in `bench/README.md`.
pub(crate) fn built() -> impl Iterator<Item = String> {
    PEERS.into_iter().filter(|peer| program(peer).exists()).map(str::to_owned)
}

/// Runs a peer's program; it prints the same JSON line.
pub(crate) fn run(peer: &str, workload: Workload, size: Size) -> anyhow::Result<Figures> {
    ensure!(PEERS.contains(&peer), "there is no peer {peer:?}: use outlast-sqlite or one of {PEERS:?}");
    let path = program(peer);
    ensure!(path.exists(), "{peer} is not built: run `cargo build --release` in bench/peers");
    let mut command = Command::new(path);
    command.args(["--workload", workload.name()]);
    for (flag, value) in [("--n", size.n), ("--inflight", size.inflight)] {
        if let Some(value) = value {
            command.args([flag, &value.to_string()]);
        }
    }
    let output = command
        .env("RUST_LOG", "off")
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{peer} cannot be run"))?;
    ensure!(output.status.success(), "{peer} failed on {}", workload.name());
    serde_json::from_slice(&output.stdout).with_context(|| format!("{peer} printed no figures"))
}
