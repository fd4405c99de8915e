//! The parts of a node that the tasks of a shard owner share. A node has one owner for all its shards.

use std::sync::Arc;

use outlast_broker::Broker;
use outlast_client::Surroundings;
use outlast_core::{Limits, NodeId};
use outlast_storage::Store;
use tokio_util::sync::CancellationToken;

use crate::dispatch::Dispatcher;
use crate::instances::due_queue::DueQueue;
use crate::instances::warm::WarmInstances;
use crate::node::supervision::Supervisor;
use crate::problems::known::Problems;
use crate::shards::neighbours::Neighbours;
use crate::shards::tenure::Tenure;

/// Owner of the shards that a node holds.
pub(crate) struct Owner {
    pub(crate) id: NodeId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) tenure: Arc<Tenure>,
    pub(crate) neighbours: Arc<Neighbours>,
    pub(crate) warm: Arc<WarmInstances>,
    pub(crate) due_queue: Arc<DueQueue>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) problems: Arc<Problems>,
    /// Looks after the tasks of the node.
    pub(crate) supervisor: Arc<Supervisor>,
    pub(crate) stopping: CancellationToken,
    pub(crate) surroundings: Surroundings,
}

#[cfg(feature = "telemetry")]
impl crate::telemetry::metrics::Gauged for Owner {
    fn warm_instances(&self) -> usize {
        self.warm.warm_count()
    }

    fn mailbox_depth(&self) -> usize {
        self.warm.mailbox_depth()
    }

    fn unserved(&self) -> usize {
        self.problems.unserved_count()
    }
}
