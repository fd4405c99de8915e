//! Runs the workloads on Outlast and its peers, and prints a table or one line of JSON.

mod claims;
mod costs;
mod figures;
mod floor;
mod measured;
mod medians;
mod peers;
mod processes;
mod roles;
mod served;
mod servers;
mod table;
mod timers;
mod workload;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use measured::{Row, Run};
use peers::{Group, Peer};
use roles::Role;
use servers::Servers;
use workload::{Size, Workload};

/// Without arguments: every workload on every peer that is built, as a Markdown table.
#[derive(Parser)]
struct Arguments {
    /// Only this peer.
    #[arg(long)]
    peer: Vec<Peer>,
    /// Only peers that keep their state there.
    #[arg(long)]
    group: Option<Group>,
    /// Only this workload.
    #[arg(long)]
    workload: Vec<Workload>,
    /// How many instances (w5: how many steps), for every peer.
    #[arg(long)]
    n: Option<usize>,
    /// How many instances at once, for every peer.
    #[arg(long)]
    inflight: Option<usize>,
    /// Medians of so many runs; the peers take turns.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// One line of JSON for each run instead of the table.
    #[arg(long)]
    json: bool,
    /// Instead of a workload: `flat` (N steps in one execution), `waiting` (N instances that wait) or `timers` (N timers, K of them
    /// in each instance).
    #[arg(long)]
    claim: Option<String>,
    #[arg(long, hide = true)]
    role: Option<Role>,
    #[arg(long, hide = true)]
    watch_waiting: Option<std::path::PathBuf>,
    #[arg(long, hide = true, default_value = "")]
    started: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(role) = arguments.role {
        return play(role, &arguments).await;
    }
    if let Some(directory) = &arguments.watch_waiting {
        let n = arguments.n.unwrap_or_default();
        let figures = claims::watch_waiting(directory, n, &arguments.started).await?;
        println!("{}", serde_json::to_string(&figures)?);
        return Ok(());
    }
    match arguments.claim.as_deref() {
        Some("flat") => {
            println!("{}", serde_json::to_string(&claims::flat(arguments.n.unwrap_or(10_000)).await?)?);
            return Ok(());
        }
        Some("waiting") => return claims::waiting(arguments.n.unwrap_or(100_000)).await,
        Some("timers") => {
            return timers::run(arguments.n.unwrap_or(1_000_000), arguments.inflight.unwrap_or(50)).await;
        }
        Some(other) => anyhow::bail!("there is no claim {other}: use flat, waiting or timers"),
        None => {}
    }
    run_all(&arguments).await
}

/// What a process does that this program started of itself.
async fn play(role: Role, arguments: &Arguments) -> anyhow::Result<()> {
    let workload = *arguments.workload.first().context("a role has a workload")?;
    let (n, inflight) = arguments.n.zip(arguments.inflight).context("a role has a size")?;
    let size = Size { n, inflight };
    match role {
        Role::Sqlite => roles::sqlite(workload, size).await,
        Role::Client => roles::client(workload, size).await,
        Role::Orchestrator => roles::orchestrator().await,
        Role::Worker => roles::worker().await,
        Role::Floor => floor::run(workload, size).await,
    }
}

async fn run_all(arguments: &Arguments) -> anyhow::Result<()> {
    let runs = arguments.runs()?;
    let single = runs.len() == 1;
    let servers = match runs.iter().any(|run| run.peer.group() == Group::Postgres) {
        true => Some(Servers::up().await?),
        false => None,
    };
    let mut rows = Vec::new();
    for (number, run) in runs.iter().enumerate() {
        let label = format!("[{}/{}] {} {}", number + 1, runs.len(), run.peer.name(), run.workload.name());
        let bar = ProgressBar::new_spinner().with_message(label.clone());
        bar.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}")?);
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        let row = run.measure(servers.as_ref().filter(|_| run.peer.group() == Group::Postgres)).await;
        bar.finish_and_clear();
        let row = row?;
        eprintln!("{label}: {}", summary(&row));
        if arguments.json {
            println!("{}", serde_json::to_string(&row)?);
        }
        rows.push(row);
    }
    match (arguments.json, single) {
        (true, _) => {}
        (false, true) => println!("{}", serde_json::to_string(&rows[0])?),
        (false, false) => println!("{}", table::render(&medians::medians(&rows)?)),
    }
    Ok(())
}

fn summary(row: &Row) -> String {
    let (figures, costs) = (&row.figures, &row.costs);
    format!("{:.0}/s, p50 {:.2} ms, {:.3} CPU s per 1,000", figures.rate, figures.p50_ms, costs.cpu_s_per_1000)
}

impl Arguments {
    /// The peers take turns, so that what disturbs the machine disturbs all of them.
    fn runs(&self) -> anyhow::Result<Vec<Run>> {
        let asked = |peer: &Peer| {
            let by_name = self.peer.is_empty() || self.peer.contains(peer);
            by_name && self.group.is_none_or(|group| group == peer.group())
        };
        let (built, missing): (Vec<Peer>, Vec<Peer>) =
            Peer::value_variants().iter().copied().filter(asked).partition(|peer| peer.is_built());
        for peer in missing {
            let how = "build it with `cargo build --release --manifest-path bench/peers/Cargo.toml`";
            anyhow::ensure!(!self.peer.contains(&peer), "{} is missing: {how}", peer.name());
            eprintln!("{} is missing: {how}", peer.name());
        }
        let workloads =
            if self.workload.is_empty() { Workload::value_variants().to_vec() } else { self.workload.clone() };
        let mut runs = Vec::new();
        for workload in workloads {
            for _ in 0..self.repeat.max(1) {
                for peer in built.iter().copied().filter(|peer| peer.runs(workload)) {
                    let Size { n, inflight } = peer.size(workload);
                    let size = Size { n: self.n.unwrap_or(n), inflight: self.inflight.unwrap_or(inflight) };
                    runs.push(Run { peer, workload, size });
                }
            }
        }
        anyhow::ensure!(!runs.is_empty(), "there is nothing to run");
        Ok(runs)
    }
}

/// Beside the program, where temporary files lie on a disk and not in memory.
fn program_directory() -> anyhow::Result<std::path::PathBuf> {
    Ok(std::env::current_exe()?.parent().context("the program lies in a directory")?.to_owned())
}
