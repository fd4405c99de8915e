//! What brokers promise, shown on each of them, and what JetStream alone must stand.

mod items;
mod server;
mod world;

mod conformance;
mod faults;
mod rates;
