//! The programming model, end to end: the behaviour that programs rely on, the same on every provider.

pub(crate) mod faulty;
pub(crate) mod world;

mod activities;
mod basics;
mod cancelling;
mod children;
mod deadlines;
mod dropped_calls;
mod events;
mod inventory;
mod limits;
mod lives;
mod management;
mod panics;
mod pausing;
mod replacing;
mod resources;
mod restarting;
mod routing;
mod sessions;
mod slots;
mod standing_still;
mod starting_and_leaving;
mod state;
mod supervision;
mod typed;
mod versions;
