//! A simulated environment for nodes: deterministic, on virtual time, with faults drawn from a seed.

pub mod broker;
mod lock;
pub mod simulation;
pub mod store;
