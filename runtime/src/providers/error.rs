//! Errors of providers.

pub use crate::providers::cluster::ConnectError;
pub use outlast_broker::Error as BrokerError;
pub use outlast_client::ProviderError;
pub use outlast_storage::Error as StoreError;
