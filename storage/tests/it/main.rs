//! One conformance suite for all stores: every test runs on SQLite in memory, on a SQLite file and on real Postgres.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fixture;

mod admission;
mod bulk;
mod calls;
mod clocks;
mod commits;
mod fences;
mod interleavings;
mod late_rows;
mod leases;
mod lives;
mod postgres_only;
mod sizes;
mod sqlite_only;
