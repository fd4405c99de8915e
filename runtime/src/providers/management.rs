//! Arguments and results of management calls.

pub use outlast_client::{
    DeleteInstanceResult, ExecutionInfo, InstanceFilter, InstanceInfo, InstanceTree, PruneOptions, PruneResult,
    QueueDepths, SystemMetrics,
};
