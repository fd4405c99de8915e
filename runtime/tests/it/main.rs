//! The whole system on real stores: the behaviour that programs rely on.
#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

mod activities;
mod basics;
mod cancelling;
mod children;
mod crash;
mod events;
mod limits;
mod logging;
mod management;
mod outages;
mod routing;
mod scale;
mod state;
mod testing;
mod tidy;
mod versions;
