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

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse() {
        Arguments::Demo(demo) => demo::run(demo).await,
        Arguments::Node(node) => node::run(node).await,
        Arguments::Render(render) => single::run(render).await,
    }
}
