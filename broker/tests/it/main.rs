//! What brokers promise, shown on each of them, and what JetStream alone must stand.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod items;
mod leaving;
mod operator;
mod server;
mod world;

mod admission;
mod conformance;
mod departures;
mod edited_consumers;
mod faults;
mod half_alive;
mod rates;
