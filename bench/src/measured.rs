//! The measuring side of a run: starts the processes of a peer, gives the orders, reads the counters around `go`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::costs::{Costs, Span, Watched};
use crate::figures::{Figures, percentile};
use crate::peers::{Peer, Program};
use crate::roles::Role;
use crate::servers::{NAMESPACE, NATS_URL, POSTGRES_URL, Place, Servers};
use crate::workload::{Size, Workload};

/// Longest time for one run.
const PATIENCE: Duration = Duration::from_secs(900);

/// One workload on one peer.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) peer: Peer,
    pub(crate) workload: Workload,
    pub(crate) size: Size,
}

/// All that is known of a run; one line of JSON.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) peer: String,
    pub(crate) workload: String,
    #[serde(flatten)]
    pub(crate) figures: Figures,
    #[serde(flatten)]
    pub(crate) costs: Costs,
}

/// A program to start, with its name in the figures.
type Named = (String, Command);

/// A process that takes orders; it is killed when this is dropped.
struct Process {
    name: String,
    child: Child,
    orders: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

impl Run {
    /// On servers if the peer needs them: in a database and a namespace of its own, dropped afterwards.
    pub(crate) async fn measure(self, servers: Option<&Servers>) -> anyhow::Result<Row> {
        let what = || format!("{} on {}", self.peer.name(), self.workload.name());
        let Some(servers) = servers else {
            return self.unless_interrupted(None).await.with_context(what);
        };
        let place = servers.fresh_place().await?;
        let row = self.unless_interrupted(Some((servers, &place))).await.with_context(what);
        servers.clear(place).await?;
        row
    }

    /// Interrupted, the program still drops the database and stops the servers that it started.
    async fn unless_interrupted(self, on: Option<(&Servers, &Place)>) -> anyhow::Result<Row> {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            row = self.between(on) => row,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    }

    async fn between(self, on: Option<(&Servers, &Place)>) -> anyhow::Result<Row> {
        let place = on.map(|(_, place)| place);
        // Beside the program, since a directory for temporary files may lie in memory. Killed processes leave theirs.
        let scratch = tempfile::tempdir_in(crate::program_directory()?)?;
        let (main, helpers) = self.commands(scratch.path())?;
        if on.is_some() {
            // Creates the tables. Were it the same process, its last counts would come only during the run.
            let mut first = Process::start(main, self, place)?;
            first.hear("ready").await?;
            first.end().await?;
        }
        let mut programs = Vec::new();
        for command in helpers {
            let mut helper = Process::start(command, self, place)?;
            helper.hear("ready").await?;
            programs.push(helper);
        }
        let (main, _) = self.commands(scratch.path())?;
        let mut main = Process::start(main, self, place)?;
        main.hear("ready").await?;
        main.order("warm").await?;
        main.hear("warm").await?;
        programs.push(main);
        self.counted(programs, on).await
    }

    /// From `go` to the end, with all counters; the last of the programs drives.
    async fn counted(self, mut programs: Vec<Process>, on: Option<(&Servers, &Place)>) -> anyhow::Result<Row> {
        let place = on.map(|(_, place)| place);
        let (fsync_ms, load) = (fsync_ms(&crate::program_directory()?)?, load_average());
        let watched = Watched {
            programs: programs.iter().map(Process::name_and_pid).collect::<anyhow::Result<_>>()?,
            servers: on.map(|(servers, _)| servers),
        };
        let mut db = match place {
            Some(place) => Some(place.connect().await?),
            None => None,
        };
        let before = match (place, &mut db) {
            (Some(place), Some(db)) => Some(place.counters(db).await?),
            (Some(_), None) | (None, _) => None,
        };
        let main = programs.last_mut().context("a peer has a program")?;
        let begin = watched.read(place.zip(db.as_mut())).await?;
        main.order("go").await?;
        let line = main.hear_figures().await?;
        let end = watched.read(place.zip(db.as_mut())).await?;
        drop(db);
        for program in programs {
            program.end().await?;
        }
        let after = match place {
            Some(place) => Some(place.final_counters().await?),
            None => None,
        };
        let figures: Figures = serde_json::from_str(&line).with_context(|| format!("no figures: {line}"))?;
        let steps = self.workload.steps(figures.n);
        let costs = Span { begin, end, counters: before.zip(after) }.costs(steps, fsync_ms, load);
        Ok(Row { peer: self.peer.name().to_owned(), workload: self.workload.name().to_owned(), figures, costs })
    }

    /// What drives the workload, and what must run before it.
    fn commands(self, scratch: &Path) -> anyhow::Result<(Named, Vec<Named>)> {
        let command = |path: &Path| {
            let mut command = Command::new(path);
            command.env("TMPDIR", scratch);
            command
        };
        let ours = |role: Role| {
            let mut command = command(&std::env::current_exe()?);
            command.args(["--role", role.name()]);
            anyhow::Ok((role.name().to_owned(), command))
        };
        Ok(match self.peer.program() {
            Program::Ours(main, helpers) => {
                (ours(main)?, helpers.iter().map(|role| ours(*role)).collect::<anyhow::Result<_>>()?)
            }
            Program::Theirs(path) => ((self.peer.name().to_owned(), command(&path)), Vec::new()),
        })
    }
}

impl Process {
    fn start((name, mut command): Named, run: Run, place: Option<&Place>) -> anyhow::Result<Self> {
        command.args(["--workload", run.workload.name()]);
        command.args(["--n", &run.size.n.to_string(), "--inflight", &run.size.inflight.to_string()]);
        command.env("RUST_LOG", std::env::var("OUTLAST_BENCH_LOG").as_deref().unwrap_or("off"));
        if let Some(place) = place {
            command.env(POSTGRES_URL, &place.postgres_url).env(NATS_URL, &place.nats_url).env(NAMESPACE, &place.name);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("{name} cannot be run"))?;
        let orders = child.stdin.take().context("standard input is piped")?;
        let said = BufReader::new(child.stdout.take().context("standard output is piped")?).lines();
        Ok(Self { name, child, orders, said })
    }

    fn name_and_pid(&self) -> anyhow::Result<(String, u32)> {
        Ok((self.name.clone(), self.child.id().with_context(|| format!("{} has ended", self.name))?))
    }

    async fn order(&mut self, word: &str) -> anyhow::Result<()> {
        self.orders.write_all(format!("{word}\n").as_bytes()).await?;
        Ok(())
    }

    async fn hear(&mut self, word: &str) -> anyhow::Result<()> {
        self.line(|line| line == word).await.with_context(|| format!("{} did not say {word:?}", self.name))?;
        Ok(())
    }

    async fn hear_figures(&mut self) -> anyhow::Result<String> {
        self.line(|line| line.starts_with('{')).await.with_context(|| format!("{} printed no figures", self.name))
    }

    /// The next line of a kind; others, such as what a library logs, go to standard error.
    async fn line(&mut self, is_wanted: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let find = async {
            loop {
                let line = self.said.next_line().await?.context("it ended")?;
                if is_wanted(&line) {
                    return anyhow::Ok(line);
                }
                eprintln!("{}: {line}", self.name);
            }
        };
        tokio::time::timeout(PATIENCE, find).await.context("it took too long")?
    }

    /// Without a goodbye, so that nothing of it is counted.
    async fn end(mut self) -> anyhow::Result<()> {
        ensure!(self.child.try_wait()?.is_none(), "{} has ended by itself", self.name);
        self.child.kill().await?;
        Ok(())
    }
}

/// Median of 50 durable writes of 4 KiB.
fn fsync_ms(directory: &Path) -> anyhow::Result<f64> {
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    let mut times = Vec::new();
    for _ in 0..50 {
        let begun = Instant::now();
        file.write_all(&[0; 4096])?;
        File::sync_data(file.as_file())?;
        times.push(begun.elapsed());
    }
    Ok(percentile(&mut times, 50))
}

/// Over the last minute.
pub(crate) fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or_default()
}
