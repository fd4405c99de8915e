//! The parts of a node that the turns of all its instances share; a turn knows nothing else of the node.

use std::sync::Arc;

use outlast_broker::Broker;
use outlast_client::Surroundings;
use outlast_core::{Limits, OrchestrationRegistry};
use outlast_storage::Store;
use tokio::sync::Semaphore;

use crate::RuntimeOptions;
use crate::dispatch::Dispatcher;
use crate::instances::committer::Committer;
use crate::instances::due_queue::DueQueue;
use crate::instances::warm::WarmInstances;
use crate::problems::known::Problems;
use crate::shards::neighbours::Neighbours;
use crate::shards::tenure::Tenure;
use crate::telemetry::counters::Counters;

/// The parts of a node that turns use.
pub(crate) struct Engine {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) orchestrations: OrchestrationRegistry,
    pub(crate) options: Arc<RuntimeOptions>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) committer: Committer,
    /// One permit for each turn that is decided and not committed yet.
    pub(crate) turns: Arc<Semaphore>,
    pub(crate) tenure: Arc<Tenure>,
    pub(crate) neighbours: Arc<Neighbours>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) warm: Arc<WarmInstances>,
    pub(crate) due_queue: Arc<DueQueue>,
    pub(crate) problems: Arc<Problems>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) surroundings: Surroundings,
}
