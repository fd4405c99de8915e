//! A render farm: separate processes on a cluster render one picture together while some of them are killed.
//!
//! `render-farm demo` is the driver, `render-farm node` one process of the farm, on this machine or another one, and
//! `render-farm render` the same picture from one process. `./dev render-farm` starts the servers and then the demo.

mod activities;
mod demo;
mod fleet;
mod mandelbrot;
mod node;
mod orchestrations;
mod picture;
mod plan;
mod requests;
mod results;
mod service;
mod single;

use clap::Parser;

/// Renders a Mandelbrot picture on a cluster whose processes come and go.
#[derive(Parser)]
enum Arguments {
    /// Runs a farm of processes on this machine, kills some of them, and checks the picture.
    Demo(demo::Demo),
    /// Runs one process of a farm until it is told to end (OUTLAST_POSTGRES_URL, OUTLAST_NATS_URL, OUTLAST_NAMESPACE,
    /// OUTLAST_TAGS).
    Node(node::Node),
    /// Renders the picture in this process alone, without servers.
    Render(single::Render),
}

fn main() -> anyhow::Result<()> {
    let executor = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = executor.block_on(run(Arguments::parse()));
    // A tile that nobody waits for any more would keep the process until it is rendered.
    executor.shutdown_background();
    ended
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments {
        Arguments::Demo(demo) => demo::run(demo).await,
        Arguments::Node(node) => node::run(node).await,
        Arguments::Render(render) => single::run(render).await,
    }
}
