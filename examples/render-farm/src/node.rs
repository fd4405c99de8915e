//! `node`: one process of the farm. All have the same code; the role and the tags say what a process does with it.

use std::env;
use std::io::Read;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use outlast::providers::cluster::{ClusterOptions, ClusterProvider};
use outlast::runtime::Runtime;
use outlast::{ActivityRegistry, Client, OrchestrationRegistry, RuntimeOptions, TagFilter};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::activities::activities;
use crate::orchestrations::orchestrations;
use crate::service;

pub(crate) const POSTGRES_URL: &str = "OUTLAST_POSTGRES_URL";
pub(crate) const NATS_URL: &str = "OUTLAST_NATS_URL";
pub(crate) const NAMESPACE: &str = "OUTLAST_NAMESPACE";
pub(crate) const TAGS: &str = "OUTLAST_TAGS";
pub(crate) const NAMESPACE_DEFAULT: &str = "render_farm";
/// How long what runs may go on after the node was told to end.
const SHUTDOWN_MS: u64 = 5_000;

/// What a process of the farm does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Runs orchestrations and no activities.
    Orchestrator,
    /// Runs activities with the tags in OUTLAST_TAGS (separated by commas), or those without a tag when it is not set.
    Worker,
    /// Serves HTTP and is only a client.
    Service,
}

/// One process of the farm.
#[derive(Args)]
pub(crate) struct Node {
    #[arg(long)]
    role: Role,
    /// First part of its name in histories and logs.
    #[arg(long, default_value = "node")]
    name: String,
    /// Activities at once; as many as there are processors when not given.
    #[arg(long)]
    slots: Option<usize>,
    /// Port of the service on 127.0.0.1; any free one when 0.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// End when standard input does: so nothing outlives the process that started this one, however that one ends.
    #[arg(long)]
    until_stdin_ends: bool,
}

pub(crate) async fn run(node: Node) -> anyhow::Result<()> {
    let end = told_to_end(node.until_stdin_ends)?;
    let provider = Arc::new(connect().await?);
    let none = OrchestrationRegistry::builder().build();
    let runtime = match node.role {
        Role::Service => return service::serve(Client::new(provider), node.port, end).await,
        Role::Orchestrator => {
            let options = RuntimeOptions { worker_concurrency: 0, ..options(&node)? };
            Runtime::try_start(provider, ActivityRegistry::default(), orchestrations(), options).await?
        }
        Role::Worker => Runtime::try_start(provider, activities(), none, options(&node)?).await?,
    };
    end.await;
    runtime.shutdown(Some(SHUTDOWN_MS)).await;
    Ok(())
}

fn options(node: &Node) -> anyhow::Result<RuntimeOptions> {
    let slots = node.slots.map_or_else(|| std::thread::available_parallelism().map(usize::from), Ok)?;
    Ok(RuntimeOptions {
        worker_concurrency: slots,
        worker_tag_filter: filter(&env::var(TAGS).unwrap_or_default()),
        worker_node_id: Some(node.name.clone()),
        ..RuntimeOptions::default()
    })
}

fn filter(tags: &str) -> TagFilter {
    let tags: Vec<_> = tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).collect();
    if tags.is_empty() { TagFilter::DefaultOnly } else { TagFilter::tags(tags) }
}

/// Where a server is, from the environment.
pub(crate) fn url(name: &str) -> anyhow::Result<String> {
    env::var(name).with_context(|| format!("set {name}, or run ./dev render-farm, which starts the servers"))
}

async fn connect() -> anyhow::Result<ClusterProvider> {
    let namespace = env::var(NAMESPACE).unwrap_or_else(|_| NAMESPACE_DEFAULT.to_owned());
    let options = ClusterOptions::new(url(POSTGRES_URL)?, url(NATS_URL)?).namespace(&namespace);
    Ok(ClusterProvider::connect(options).await?)
}

/// Resolves at ctrl-c, at SIGTERM and, if asked for, at the end of standard input.
fn told_to_end(until_stdin_ends: bool) -> anyhow::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (told, stdin_ended) = oneshot::channel();
    // A thread of its own: the program must be able to end while it reads.
    let reader = until_stdin_ends.then(|| {
        std::thread::spawn(move || {
            let mut byte = [0];
            while std::io::stdin().read(&mut byte).is_ok_and(|count| count > 0) {}
            let _ = told.send(());
        })
    });
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = stdin_ended, if reader.is_some() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_separated_by_commas() {
        assert_eq!(filter(""), TagFilter::DefaultOnly);
        assert_eq!(filter("gpu"), TagFilter::tags(["gpu"]));
        assert_eq!(filter("gpu, big"), TagFilter::tags(["gpu", "big"]));
    }
}
