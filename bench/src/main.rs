//! Runs the workloads and prints one JSON line each, or a table of all.

mod claims;
mod measure;
mod outlast_sqlite;
mod peer_process;
mod table;
mod workload;

use clap::Parser;

use measure::Figures;
use workload::{Size, Workload};

/// The peer that this program runs itself.
const OURS: &str = "outlast-sqlite";

/// Without arguments: every workload on every peer that is there, as a Markdown table.
#[derive(Parser)]
struct Arguments {
    /// `outlast-sqlite`, or the name of a program built in `bench/peers`.
    #[arg(long)]
    peer: Option<String>,
    /// One of w1 to w6.
    #[arg(long)]
    workload: Option<Workload>,
    /// How many instances (w5: how many steps).
    #[arg(long)]
    n: Option<usize>,
    /// How many instances at once.
    #[arg(long)]
    inflight: Option<usize>,
    /// Instead of a workload: `flat` (N steps in one execution) or `waiting` (N instances that wait).
    #[arg(long)]
    claim: Option<String>,
    #[arg(long, hide = true)]
    watch_waiting: Option<std::path::PathBuf>,
    #[arg(long, hide = true, default_value = "")]
    started: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
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
        Some(other) => anyhow::bail!("there is no claim {other}: use flat or waiting"),
        None => {}
    }
    let peers = arguments.peer.map_or_else(all_peers, |peer| vec![peer]);
    let workloads = arguments.workload.map_or_else(|| Workload::ALL.to_vec(), |workload| vec![workload]);
    let single = peers.len() == 1 && workloads.len() == 1;
    eprintln!("load before: {}", measure::load_average());
    let mut rows = Vec::new();
    for workload in workloads {
        for peer in &peers {
            let size = Size { n: arguments.n, inflight: arguments.inflight };
            rows.push(run(peer, workload, size).await?);
        }
    }
    eprintln!("load after: {}", measure::load_average());
    if single {
        println!("{}", serde_json::to_string(&rows[0])?);
    } else {
        println!("{}", table::render(&rows));
    }
    Ok(())
}

async fn run(peer: &str, workload: Workload, size: Size) -> anyhow::Result<Figures> {
    let bar = indicatif::ProgressBar::new_spinner().with_message(format!("{peer} {workload:?}"));
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let figures = if peer == OURS {
        outlast_sqlite::run(workload, workload.size(size)).await
    } else {
        let peer = peer.to_owned();
        tokio::task::spawn_blocking(move || peer_process::run(&peer, workload, size)).await?
    };
    bar.finish_and_clear();
    figures
}

fn all_peers() -> Vec<String> {
    let mut peers = vec![OURS.to_owned()];
    peers.extend(peer_process::built());
    peers
}
