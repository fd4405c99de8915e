//! What the tests of several packages need from the machine: servers of their own on 127.0.0.1, certificates, a disk that can be
//! filled. A test that needs a server and finds no program for it panics with what to do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod authority;
mod nats;
mod postgres;
mod process;
mod small_disk;

pub use authority::{Authority, Certificate};
pub use nats::NatsServer;
pub use postgres::PostgresServer;
pub use process::copy_tree;
pub use small_disk::SmallDisk;
