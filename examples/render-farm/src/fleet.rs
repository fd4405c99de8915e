//! The processes of the demo: started, killed, replaced, and none left behind.
//!
//! Each has a pipe as standard input, ends when that does, and is killed when the fleet is dropped: so ctrl-c, an error and
//! even the sudden death of the driver end them all.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::join_all;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::node::{NAMESPACE, TAGS, TELEMETRY_GREETING};
use crate::orchestrations::GPU;
use crate::requests::ask;
use crate::service::GREETING;

/// Longest start of a process; the first one prepares schema and streams.
const START_MAX: Duration = Duration::from_secs(60);
/// Longest end of a process that was asked for it.
const END_MAX: Duration = Duration::from_secs(10);
/// Lines of a log that are shown when its process has ended by itself.
const LOG_LINES_SHOWN: usize = 5;

/// What a process is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Duty {
    Service,
    Orchestrator,
    /// A worker that takes what has no tag.
    Cpu,
    /// A worker that takes what has the tag "gpu".
    Gpu,
}

/// One living process.
struct Member {
    duty: Duty,
    name: String,
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Lines of its output so far.
    said: Vec<String>,
}

/// What the living processes say of themselves, by /readyz and /metrics.
#[derive(Debug, Default)]
pub(crate) struct Census {
    pub(crate) ready: usize,
    /// Turns that the orchestrators have committed.
    pub(crate) turns: f64,
    /// Attempts that the workers have ended.
    pub(crate) attempts: f64,
}

/// All living processes, oldest first.
pub(crate) struct Fleet {
    logs: PathBuf,
    namespace: String,
    /// Activities at once of a worker.
    slots: usize,
    members: Vec<Member>,
    started: BTreeMap<Duty, u32>,
}

impl Duty {
    fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Orchestrator => "orchestrator",
            Self::Cpu => "cpu",
            Self::Gpu => GPU,
        }
    }

    fn role(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Orchestrator => "orchestrator",
            Self::Cpu | Self::Gpu => "worker",
        }
    }
}

impl Fleet {
    pub(crate) fn new(logs: PathBuf, namespace: String, slots: usize) -> Self {
        Self { logs, namespace, slots, members: Vec::new(), started: BTreeMap::new() }
    }

    /// Starts one more process; its name.
    pub(crate) fn start(&mut self, duty: Duty) -> anyhow::Result<String> {
        let number = self.started.entry(duty).or_default();
        *number += 1;
        let name = format!("{}{number}", duty.name());
        let log = File::create(self.log(&name))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["node", "--until-stdin-ends", "--role", duty.role(), "--name", &name]);
        command.arg(format!("--slots={}", self.slots)).arg("--telemetry-port=0");
        command.env(NAMESPACE, &self.namespace).env_remove(TAGS);
        if duty == Duty::Gpu {
            command.env(TAGS, GPU);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true).spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("a pipe")?);
        self.members.push(Member { duty, name: name.clone(), child, stdout, said: Vec::new() });
        Ok(name)
    }

    /// Starts the service and waits until it serves; its address.
    pub(crate) async fn start_service(&mut self) -> anyhow::Result<String> {
        let name = self.start(Duty::Service)?;
        let service = self.members.last_mut().context("just started")?;
        match service.address(GREETING).await? {
            Some(address) => Ok(address),
            None => bail!("the service did not start: {}", self.last_words(&name)),
        }
    }

    /// Asks all of them; whoever is still starting is waited for.
    pub(crate) async fn census(&mut self) -> anyhow::Result<Census> {
        let mut census = Census::default();
        for member in &mut self.members {
            let address = member.address(TELEMETRY_GREETING).await?;
            let name = &member.name;
            let address = address.with_context(|| format!("{name} did not start"))?;
            ask(&address, "/readyz").await.with_context(|| format!("{name} is not ready"))?;
            let metrics = ask(&address, "/metrics").await?;
            census.ready += 1;
            census.turns += sum(&metrics, "outlast_turns_total");
            census.attempts += sum(&metrics, "outlast_activity_duration_seconds_count");
        }
        Ok(census)
    }

    /// Kills the oldest process of this duty as a power cut would; its name and number.
    pub(crate) async fn kill_oldest(&mut self, duty: Duty) -> anyhow::Result<(String, u32)> {
        let oldest = self.members.iter().position(|member| member.duty == duty).context("nothing to kill")?;
        let mut member = self.members.remove(oldest);
        let pid = member.child.id().context("it has ended by itself")?;
        member.child.kill().await?;
        Ok((member.name, pid))
    }

    /// An error when a process has ended that nobody killed.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            if let Some(status) = member.child.try_wait()? {
                let name = member.name.clone();
                bail!("{name} ended by itself ({status}): {}", self.last_words(&name));
            }
        }
        Ok(())
    }

    /// Asks all to end, and waits until they have.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        let ends = self.members.iter_mut().map(|member| async {
            drop(member.child.stdin.take());
            if timeout(END_MAX, member.child.wait()).await.is_err() {
                member.child.kill().await?;
            }
            Ok(())
        });
        join_all(ends).await.into_iter().collect()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    fn last_words(&self, name: &str) -> String {
        let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }
}

impl Member {
    /// The address after these words in its output, which may have to be waited for.
    async fn address(&mut self, greeting: &str) -> anyhow::Result<Option<String>> {
        let found = async {
            loop {
                if let Some(address) = self.said.iter().find_map(|line| line.trim().strip_prefix(greeting)) {
                    return Ok(Some(address.to_owned()));
                }
                let mut line = String::new();
                if self.stdout.read_line(&mut line).await? == 0 {
                    return Ok(None);
                }
                self.said.push(line);
            }
        };
        timeout(START_MAX, found).await.with_context(|| format!("{} does not start", self.name))?
    }
}

/// Adds the values of a metric up, whatever their labels.
fn sum(metrics: &str, name: &str) -> f64 {
    let samples =
        metrics.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with([' ', '{']));
    samples.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_added_up_over_its_labels() {
        let metrics = "# TYPE runs counter\nruns{activity=\"a b\"} 2\nruns{activity=\"c\"} 3\nruns_total 7\nturns 4\n";
        assert_eq!((sum(metrics, "runs"), sum(metrics, "turns"), sum(metrics, "none")), (5.0, 4.0, 0.0));
    }
}
