//! The client, also at the crate's root.

pub use outlast_client::{Client, ClientError, ClientOptions, StartOptions};
