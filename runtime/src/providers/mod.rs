//! A store and a broker that belong together.

pub mod cluster;
pub mod sqlite;

pub use crate::{InstanceFilter, PruneOptions, TagFilter};
pub use outlast_client::Provider;
