//! `demo`: the driver. It starts the farm, orders a picture, kills processes while it is rendered, and checks the result.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use hyper::body::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::fleet::{Duty, Fleet};
use crate::node::{NAMESPACE, NAMESPACE_DEFAULT, NATS_URL, POSTGRES_URL, url};
use crate::plan::Plan;
use crate::requests::Remote;
use crate::service::{Account, Stand};

/// What the farm begins with beside its service, and what is killed in turn.
const DUTIES: [Duty; 3] = [Duty::Gpu, Duty::Orchestrator, Duty::Cpu];
const MEMBERS_PER_DUTY: usize = 2;
/// How often the service is asked.
const POLL: Duration = Duration::from_millis(50);
/// Longest time without any progress.
const PATIENCE: Duration = Duration::from_secs(120);

/// What to render, and whom to kill.
#[derive(Args)]
pub(crate) struct Demo {
    #[command(flatten)]
    plan: Plan,
    /// Kill so many workers of the pool "gpu".
    #[arg(long, default_value_t = 2)]
    kill_gpu: u32,
    /// Kill so many orchestrators.
    #[arg(long, default_value_t = 1)]
    kill_orchestrators: u32,
    /// Kill so many workers of the pool without a tag.
    #[arg(long, default_value_t = 1)]
    kill_cpu: u32,
    /// Activities at once of each worker.
    #[arg(long, default_value_t = 2)]
    slots: usize,
    /// The PNG file to write.
    #[arg(long, value_name = "FILE", default_value = "render-farm.png")]
    out: PathBuf,
}

impl Demo {
    /// Whom to kill, one after the other, spread evenly over the work.
    fn kills(&self) -> Vec<Duty> {
        let counts = [self.kill_gpu, self.kill_orchestrators, self.kill_cpu];
        let rounds = 0..counts.into_iter().max().unwrap_or(0);
        let kills = rounds.flat_map(|round| DUTIES.into_iter().zip(counts).filter(move |(_, count)| round < *count));
        kills.map(|(duty, _)| duty).collect()
    }
}

pub(crate) async fn run(demo: Demo) -> anyhow::Result<()> {
    // Before anything is started, so that what is missing is said at once.
    url(POSTGRES_URL)?;
    url(NATS_URL)?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let directory = tempfile::tempdir()?;
    let outcome = tokio::select! {
        outcome = drive(&demo, directory.path()) => outcome,
        _ = interrupt.recv() => bail!("interrupted; its processes are ended"),
        _ = terminate.recv() => bail!("told to end; its processes are ended"),
    };
    if outcome.is_err() {
        eprintln!("the logs of the processes are in {}", directory.keep().display());
    }
    outcome
}

async fn drive(demo: &Demo, directory: &Path) -> anyhow::Result<()> {
    let Plan { width, height, .. } = demo.plan;
    let namespace = env::var(NAMESPACE).unwrap_or_else(|_| NAMESPACE_DEFAULT.to_owned());
    let mut fleet = Fleet::new(directory.to_owned(), namespace, demo.slots);
    let address = fleet.start_service().await?;
    for duty in DUTIES {
        for _ in 0..MEMBERS_PER_DUTY {
            fleet.start(duty)?;
        }
    }
    println!("service on http://{address}; 2 orchestrators, 2 cpu workers and 2 gpu workers, each a process");
    let since_epoch = std::time::UNIX_EPOCH.elapsed()?.as_millis();
    let id = format!("picture-{since_epoch}-{}", std::process::id());
    let remote = Remote::new(address, &id);
    let begun = Instant::now();
    remote.order(demo.plan).await?;
    println!("ordered {id}: {width}x{height} pixels, {} tiles", demo.plan.tile_count());
    let killed = Watch { demo, fleet: &mut fleet, remote: &remote, bar: bar(demo.plan) }.until_done().await?;
    let png = remote.bytes("/png").await?;
    let took = begun.elapsed();
    std::fs::write(&demo.out, &png).with_context(|| format!("{} cannot be written", demo.out.display()))?;
    println!("{} after {:.1} s, {} bytes", demo.out.display(), took.as_secs_f64(), png.len());
    check_account(demo.plan, &remote.read("/account").await?)?;
    let census = fleet.census().await?;
    println!(
        "{} processes are ready; those that were not killed count {} turns and {} activities",
        census.ready, census.turns, census.attempts
    );
    remote.delete().await?;
    fleet.end().await?;
    check_pixels(demo.plan, directory, png).await?;
    println!("{killed} processes killed and replaced, nothing lost");
    Ok(())
}

fn bar(plan: Plan) -> ProgressBar {
    let style = ProgressStyle::with_template("{elapsed:>4} {bar:40} {pos}/{len} tiles, {msg}");
    ProgressBar::new(plan.tile_count().into()).with_style(style.expect("the template is right"))
}

/// The driver while the picture is rendered.
struct Watch<'a> {
    demo: &'a Demo,
    fleet: &'a mut Fleet,
    remote: &'a Remote,
    bar: ProgressBar,
}

impl Watch<'_> {
    /// How many processes were killed.
    async fn until_done(mut self) -> anyhow::Result<usize> {
        let kills = self.demo.kills();
        let (mut killed, mut last, mut moved) = (0, Stand::default(), Instant::now());
        loop {
            self.fleet.check()?;
            let news = self.remote.read::<Stand>("").await;
            match news {
                Ok(stand) if stand != last => (last, moved) = (stand, Instant::now()),
                Err(error) if moved.elapsed() > PATIENCE => return Err(error.context("the service does not answer")),
                Ok(_) | Err(_) => ensure!(moved.elapsed() < PATIENCE, "no progress for {PATIENCE:?}: {last:?}"),
            }
            if let Some(error) = last.error {
                bail!("the picture failed: {error}");
            }
            let strips = self.demo.plan.strip_count();
            self.bar.set_position(last.tiles_done.into());
            self.bar.set_message(format!("{}/{strips} strips", last.strips_done));
            if last.ended {
                self.bar.finish_and_clear();
                ensure!(killed == kills.len(), "the picture was ready before all kills: make it larger");
                return Ok(killed);
            }
            let due = self.demo.plan.tile_count() as usize * (killed + 1) / (kills.len() + 1);
            if let Some(duty) = kills.get(killed).filter(|_| last.tiles_done as usize >= due) {
                self.replace(*duty, last.tiles_done).await?;
                killed += 1;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn replace(&mut self, duty: Duty, tiles_done: u32) -> anyhow::Result<()> {
        let (name, pid) = self.fleet.kill_oldest(duty).await?;
        let successor = self.fleet.start(duty)?;
        self.bar.suspend(|| println!("at {tiles_done} tiles: killed {name} (kill -9 {pid}), started {successor}"));
        Ok(())
    }
}

/// Every tile and every strip has one result in the histories, whoever was killed.
fn check_account(plan: Plan, account: &Account) -> anyhow::Result<()> {
    let parts = [
        ("tiles rendered", plan.tile_count(), &account.rendered),
        ("strips joined", plan.strip_count(), &account.joined),
    ];
    for (what, expected, by_worker) in parts {
        let count: u32 = by_worker.values().sum();
        println!("{count} {what} by {}", list(by_worker));
        ensure!(count == expected, "{count} {what}, but there are {expected}");
    }
    Ok(())
}

/// A worker's id is its name and what makes it unique.
fn list(by_worker: &BTreeMap<String, u32>) -> String {
    let name = |worker: &str| worker.split('-').next().unwrap_or_default().to_owned();
    by_worker.iter().map(|(worker, count)| format!("{} ({count})", name(worker))).collect::<Vec<_>>().join(", ")
}

async fn check_pixels(plan: Plan, directory: &Path, png: Bytes) -> anyhow::Result<()> {
    println!("rendering the same in one process");
    let out = directory.join("single.png");
    let mut single = Command::new(env::current_exe()?);
    single.arg("render").args(plan.arguments()).arg("--out").arg(&out).kill_on_drop(true);
    let begun = Instant::now();
    ensure!(single.status().await?.success(), "rendering in one process failed");
    ensure!(std::fs::read(out)? == png, "the picture differs from the one that a single process has rendered");
    println!("the same, byte for byte, after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}
