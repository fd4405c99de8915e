//! A store and a broker that belong together.

pub mod cluster;
pub mod error;
pub mod management;
pub mod sqlite;

pub use self::error::{BrokerError, ConnectError, ProviderError, StoreError};
pub use self::management::{
    DeleteInstanceResult, ExecutionInfo, InstanceFilter, InstanceInfo, InstanceTree, PruneOptions, PruneResult,
    QueueDepths, SystemMetrics,
};
pub use crate::runtime::limits::MAX_WORKER_TAGS;
pub use crate::{KvEntry, TagFilter};
pub use outlast_client::Provider;
