//! Tests of the pure part: scripts in, events and effects out.
#![expect(clippy::unwrap_used, reason = "tests")]

mod harness;
mod late;
mod orchestrations;

mod changing_limits;
mod ending;
mod events;
mod forks;
mod golden;
mod ids;
mod many;
mod nondeterminism;
mod panics;
mod select;
mod typed;
mod warm_is_cold;
