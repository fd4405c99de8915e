//! What a provider fails with.

pub use outlast_client::ProviderError;
