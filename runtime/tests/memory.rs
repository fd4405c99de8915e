//! The programming model on SQLite in memory and the in-process broker.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod model;
#[path = "places/memory.rs"]
mod place;
