//! The whole system on real stores: the behaviour that programs rely on.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../places/memory.rs"]
mod place;

mod beginnings;
mod circles;
mod crash;
mod errors;
mod extremes;
mod files;
mod logging;
mod outages;
mod scale;
mod sleep;
mod testing;
mod tidy;
#[path = "../model/world.rs"]
mod world;
