//! Faults of a cluster, with real processes and real servers: what dies, what is wiped, what is stopped.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod blocking;
mod broker_faults;
mod cancelling;
mod extremes;
mod figures;
mod half_alive;
mod leftovers;
mod node;
mod node_faults;
mod rolling;
mod rolling_node;
mod scale;
mod shutdown;
mod store_faults;
mod timers;
