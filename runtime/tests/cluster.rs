//! The programming model on real Postgres and a real nats-server.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod model;
#[path = "places/cluster.rs"]
mod place;
