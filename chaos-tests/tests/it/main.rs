//! What a simulation stands on is as true as what it stands for: the simulated store passes the suite of the real ones, and
//! answers as they do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fixture;

mod differential;
mod faults;
mod nodes;
mod simulation;

#[path = "../../../storage/tests/it/bulk.rs"]
mod bulk;
#[path = "../../../storage/tests/it/calls.rs"]
mod calls;
#[path = "../../../storage/tests/it/commits.rs"]
mod commits;
#[path = "../../../storage/tests/it/fences.rs"]
mod fences;
#[path = "../../../storage/tests/it/interleavings.rs"]
mod interleavings;
#[path = "../../../storage/tests/it/leases.rs"]
mod leases;

mod world;

#[path = "../../../broker/tests/it/conformance.rs"]
mod conformance;
#[path = "../../../broker/tests/it/items.rs"]
mod items;
