//! The programming model on a SQLite file and the in-process broker.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod model;
#[path = "places/sqlite.rs"]
mod place;
