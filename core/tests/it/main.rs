//! Tests of the pure part: scripts in, events and effects out.
#![expect(clippy::unwrap_used, reason = "tests")]

mod harness;
mod late;
mod orchestrations;

mod ending;
mod events;
mod golden;
mod nondeterminism;
mod select;
mod typed;
mod warm_is_cold;
