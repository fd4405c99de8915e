//! A store and a broker that belong together.

pub mod memory;
pub mod sqlite;

pub use outlast_client::Provider;
