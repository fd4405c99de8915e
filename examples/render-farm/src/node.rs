//! `node`: one process of the farm. All have the same code; the role and the tags say what a process does with it.

use std::env;
use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use clap::{Args, ValueEnum};
use outlast::providers::cluster::{ClusterOptions, ClusterProvider};
use outlast::runtime::Runtime;
use outlast::telemetry::{Telemetry, TelemetryOptions};
use outlast::{ActivityRegistry, Client, OrchestrationRegistry, RuntimeOptions, TagFilter};
use tokio::net::TcpListener;
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
/// What stands before the address in the line that says where a node can be probed and scraped.
pub(crate) const TELEMETRY_GREETING: &str = "telemetry on http://";

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
    /// Port of the service; any free one when 0.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Port of /livez, /readyz and /metrics; any free one when 0, nothing is served when it is not given.
    #[arg(long, env = "OUTLAST_TELEMETRY_PORT")]
    telemetry_port: Option<u16>,
    /// Address of both ports. Nothing of it asks who one is: others than this machine (0.0.0.0, ::) need a network of friends.
    #[arg(long, env = "OUTLAST_LISTEN", default_value = "127.0.0.1")]
    listen: IpAddr,
    /// Collector of spans and metrics, by OTLP over HTTP: http://127.0.0.1:4318.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// Seconds that running activities get to end when the node is told to.
    #[arg(long, env = "OUTLAST_DRAIN_SECONDS", default_value_t = 5)]
    drain_seconds: u64,
    /// End when standard input does: so nothing outlives the process that started this one, however that one ends.
    #[arg(long)]
    until_stdin_ends: bool,
}

pub(crate) async fn run(node: Node) -> anyhow::Result<()> {
    let end = told_to_end(node.until_stdin_ends)?;
    let telemetry = Telemetry::install(telemetry_options(&node))?;
    let provider = Arc::new(connect().await?);
    let none = OrchestrationRegistry::builder().build();
    let runtime = match node.role {
        Role::Service => {
            let client = Client::new(provider);
            show(&node, telemetry.client_router(&client)).await?;
            service::serve(client, (node.listen, node.port), end).await?;
            return say_goodbye(telemetry).await;
        }
        Role::Orchestrator => {
            let options = RuntimeOptions { worker_concurrency: 0, ..options(&node)? };
            Runtime::try_start(provider, ActivityRegistry::default(), orchestrations(), options).await?
        }
        Role::Worker => Runtime::try_start(provider, activities(), none, options(&node)?).await?,
    };
    show(&node, telemetry.router(&runtime)).await?;
    end.await;
    let drain = Duration::from_secs(node.drain_seconds);
    runtime.shutdown(Some(u64::try_from(drain.as_millis())?)).await;
    say_goodbye(telemetry).await
}

/// Serves probes and scrapers as long as the process lives, also while it drains.
async fn show(node: &Node, router: Router) -> anyhow::Result<()> {
    let Some(port) = node.telemetry_port else { return Ok(()) };
    let listener = TcpListener::bind((node.listen, port)).await?;
    println!("{TELEMETRY_GREETING}{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(())
}

/// What was not exported yet is; a collector that is away is no reason to end badly.
async fn say_goodbye(telemetry: Telemetry) -> anyhow::Result<()> {
    if let Err(error) = telemetry.shutdown().await {
        eprintln!("{error}");
    }
    Ok(())
}

fn telemetry_options(node: &Node) -> TelemetryOptions {
    TelemetryOptions {
        service_name: "render-farm".to_owned(),
        attributes: vec![("outlast.role".to_owned(), format!("{:?}", node.role).to_lowercase())],
        otlp_endpoint: node.otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty()),
        ..TelemetryOptions::default()
    }
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
