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
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::node::{NAMESPACE, TAGS};
use crate::orchestrations::GPU;
use crate::service::GREETING;

/// Longest start of the service, which prepares schema and streams.
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
        command.arg(format!("--slots={}", self.slots));
        command.env(NAMESPACE, &self.namespace).env_remove(TAGS);
        if duty == Duty::Gpu {
            command.env(TAGS, GPU);
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true).spawn()?;
        self.members.push(Member { duty, name: name.clone(), child });
        Ok(name)
    }

    /// Starts the service and waits until it serves; its address.
    pub(crate) async fn start_service(&mut self) -> anyhow::Result<String> {
        let name = self.start(Duty::Service)?;
        let stdout = self.members.last_mut().and_then(|service| service.child.stdout.take()).context("a pipe")?;
        let mut line = String::new();
        timeout(START_MAX, BufReader::new(stdout).read_line(&mut line))
            .await
            .context("the service does not start")??;
        match line.trim().strip_prefix(GREETING) {
            Some(address) => Ok(address.to_owned()),
            None => bail!("the service did not start: {}", self.last_words(&name)),
        }
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
