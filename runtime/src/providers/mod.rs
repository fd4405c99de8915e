//! A store and a broker that belong together.

// memory
pub mod sqlite;

pub use outlast_client::Provider;
