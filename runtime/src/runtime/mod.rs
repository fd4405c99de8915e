//! Starting and stopping a node and its worker.

pub(crate) mod shutdown;

use std::sync::Arc;

use outlast_broker::ShardMessage;
use outlast_client::Surroundings;
use outlast_client::{Client, Provider};
use outlast_core::{EventId, EventKind, ExecutionId, InstanceId, Millis, NodeId, RefusedOption, WorkerId};
use outlast_storage::{NodeInfo, WorkerInfo};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::node::bounds::{UnderWay, permits};
use crate::node::presence::Presence;
use crate::node::tasks::Tasks;
use crate::node::{Node, NodeParts};
use crate::problems::report::Watched;
use crate::providers::sqlite::SqliteProvider;
use crate::runtime::shutdown::Leaving;
use crate::worker::Worker;
use crate::worker::sessions::Sessions;
use crate::{ActivityRegistry, OrchestrationRegistry};

pub use crate::telemetry::counters::MetricsSnapshot;
pub use crate::{
    ActivityHandler, LogFormat, ObservabilityConfig, OrchestrationHandler, OrchestrationRegistryBuilder,
    RuntimeOptions, VersionPolicy, observability,
};
pub use outlast_core::{OrchestrationStatus, UnregisteredBackoffConfig};

/// Default limits, by the names that programs know; [`crate::Limits`] has all of them and can change them.
pub mod limits {
    pub use outlast_core::{MAX_KV_KEYS, MAX_KV_VALUE_BYTES, MAX_WORKER_TAGS};
    use outlast_core::{NAME_BYTES_MAX, QUEUE_MESSAGES_MAX};

    pub use outlast_core::MAX_CUSTOM_STATUS_BYTES;
    /// Bytes of a tag.
    pub const MAX_TAG_NAME_BYTES: usize = NAME_BYTES_MAX;
    /// Messages of one queue that continue-as-new carries over: all that a queue can hold.
    pub const MAX_CARRY_FORWARD_EVENTS: usize = QUEUE_MESSAGES_MAX;
}

/// Registries, also at the crate's root.
pub mod registry {
    pub use crate::{
        ActivityRegistry, ActivityRegistryBuilder, OrchestrationRegistry, OrchestrationRegistryBuilder, Registry,
        RegistryBuilder, RegistryError, RegistryErrors, VersionPolicy,
    };
}

/// Why a runtime could not be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// The store refuses this node.
    #[error(transparent)]
    Store(#[from] outlast_storage::Error),
    /// There is no executor to run on.
    #[error("a runtime runs on the Tokio executor that it is started on: start it inside of one")]
    OutsideOfTokio,
    /// An option cannot work.
    #[error(transparent)]
    Option(#[from] RefusedOption),
}

/// A running node: orchestrations and activities of its registries, on the provider's store and broker.
pub struct Runtime {
    pub(crate) node: Node,
    pub(crate) worker: Arc<Worker>,
    client: Client,
    /// Where messages for this node's shards go.
    pub(crate) messages: mpsc::UnboundedSender<ShardMessage>,
    pub(crate) tasks: Tasks,
    /// The executor that it runs on.
    pub(crate) executor: Handle,
    pub(crate) leaving: Leaving,
    /// Makes the node leave when dropped.
    pub(crate) presence: Presence,
}

/// Which code an instance runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrchestrationDescriptor {
    /// The orchestration's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The parent instance.
    pub parent_instance: Option<String>,
    /// The event of the parent that has scheduled it.
    pub parent_id: Option<u64>,
}

impl Runtime {
    /// Starts on a database in memory, which nobody else sees and which ends with the runtime: for a first try.
    ///
    /// # Panics
    /// When memory is short.
    pub async fn start(activities: ActivityRegistry, orchestrations: OrchestrationRegistry) -> Arc<Self> {
        let provider = SqliteProvider::new_in_memory().await.expect("a database in memory opens");
        Self::start_with_store(Arc::new(provider), activities, orchestrations).await
    }

    /// Starts with default options.
    ///
    /// # Panics
    /// When the store refuses this node, for instance because another process runs the same database file, or an option cannot
    /// work; use [`Runtime::try_start`] to get the error instead.
    pub async fn start_with_store<P: Provider + ?Sized>(
        provider: Arc<P>,
        activities: ActivityRegistry,
        orchestrations: OrchestrationRegistry,
    ) -> Arc<Self> {
        Self::start_with_options(provider, activities, orchestrations, RuntimeOptions::default()).await
    }

    /// Starts with options. Panics like [`Runtime::start_with_store`].
    pub async fn start_with_options<P: Provider + ?Sized>(
        provider: Arc<P>,
        activities: ActivityRegistry,
        orchestrations: OrchestrationRegistry,
        options: RuntimeOptions,
    ) -> Arc<Self> {
        match Self::try_start(provider, activities, orchestrations, options).await {
            Ok(runtime) => runtime,
            Err(error) => panic!("{error}"),
        }
    }

    /// Starts with options; a refusal is an error.
    pub async fn try_start<P: Provider + ?Sized>(
        provider: Arc<P>,
        activities: ActivityRegistry,
        orchestrations: OrchestrationRegistry,
        options: RuntimeOptions,
    ) -> Result<Arc<Self>, StartError> {
        options.check()?;
        let executor = Handle::try_current().map_err(|_| StartError::OutsideOfTokio)?;
        options.observability.install();
        let (store, broker, surroundings) = (provider.store(), provider.broker(), provider.surroundings());
        let client = Client::new(provider);
        let name = unique_name(options.worker_node_id.as_deref(), &surroundings);
        let handlers = orchestrations.list_names().into_iter().flat_map(|name| {
            let versions = orchestrations.list_versions(&name);
            versions.into_iter().map(move |version| (name.clone(), version.to_string()))
        });
        let id = NodeId::new(&name);
        let worker = (options.worker_concurrency > 0)
            .then(|| WorkerInfo { filter: options.worker_tag_filter.clone(), activities: activities.list_names() });
        let info = NodeInfo { id: id.clone(), handlers: handlers.collect(), worker };
        let shards = store.shards();
        let options = Arc::new(options);
        let node = Node::new(NodeParts {
            id,
            store: Arc::clone(&store),
            broker: Arc::clone(&broker),
            orchestrations,
            options: Arc::clone(&options),
            surroundings: surroundings.clone(),
        });
        let id = WorkerId::new(&name);
        let worker = Arc::new(Worker {
            sessions: Sessions::new(id.clone(), Arc::clone(&store), &options),
            id,
            activities,
            broker,
            store,
            shards,
            client: client.clone(),
            counters: Arc::clone(&node.engine.counters),
            neighbours: Arc::clone(&node.owner.neighbours),
            inquiries: crate::worker::wanted::Inquiries::default(),
            running: std::sync::Mutex::default(),
            held: std::sync::Mutex::default(),
            reporting: UnderWay::default(),
            slots: permits(options.worker_concurrency.max(1)),
            reports: permits(options.limits.reports_in_flight_max),
            attempts: TaskTracker::new(),
            troubles: Arc::clone(&node.owner.problems.troubles),
            draining: CancellationToken::new(),
            stopped: CancellationToken::new(),
            surroundings,
            options,
        });
        let (messages, receiver) = mpsc::unbounded_channel();
        let (tasks, leaving) = (Tasks::new(Arc::clone(&node.owner)), Leaving::default());
        let presence = Presence::new(Arc::clone(&node.owner), worker.id.clone(), messages.clone());
        let runtime = Self { node, worker, client, messages, tasks, executor, leaving, presence };
        #[cfg(feature = "telemetry")]
        crate::telemetry::metrics::watch(&runtime.node.owner);
        // Complete before the first await: a runtime that is dropped with this future leaves nothing behind.
        crate::node::presence::announce(&runtime.node.owner, info).await?;
        runtime.spawn_tasks(receiver).await?;
        Ok(Arc::new(runtime))
    }

    async fn spawn_tasks(&self, receiver: mpsc::UnboundedReceiver<ShardMessage>) -> Result<(), StartError> {
        let owner = &self.node.owner;
        self.tasks.spawn_receiver(receiver);
        // Takes the first share before the call returns, so that work that follows finds an owner.
        let renewals = crate::shards::renewal::begin(owner).await?;
        let first = renewals.borrow().view.clone();
        crate::shards::membership::share(owner, first, &self.messages).await?;
        self.tasks.spawn_owner(&self.messages, renewals);
        let (committer, worker) = (self.node.engine.committer.clone(), Arc::clone(&self.worker));
        self.tasks.spawn_report(Watched { owner: Arc::clone(owner), committer, worker });
        if self.worker.options.worker_concurrency > 0 {
            self.tasks.spawn_worker(&self.worker);
        }
        Ok(())
    }

    /// Ends all tasks at once. The store has what they were doing.
    pub(crate) fn stop(&self) {
        self.worker.draining.cancel();
        self.worker.stopped.cancel();
        for attempt in self.worker.lock_running().values() {
            attempt.cancelled.cancel();
        }
        self.node.stop();
    }

    /// Whether no turn and no activity of this runtime is under way, and none waits to be tried again.
    pub(crate) fn is_quiet(&self) -> bool {
        self.node.is_quiet() && self.worker.attempts.is_empty()
    }

    #[cfg(feature = "telemetry")]
    pub(crate) fn supervisor(&self) -> &crate::node::supervision::Supervisor {
        &self.node.owner.supervisor
    }

    /// Whether a turn is under way, or an instance that was due by `now` has not been woken yet.
    pub(crate) fn has_turns(&self, now: Millis) -> bool {
        !self.node.owner.warm.is_quiet() || self.node.owner.due_queue.woken_until() < now
    }

    /// Whether an activity runs here that has not been told to stop.
    pub(crate) fn runs_wanted(&self) -> bool {
        self.worker.lock_running().values().any(|attempt| !attempt.cancelled.is_cancelled())
    }

    /// Whether this node can be given work now, as far as it knows.
    pub fn readiness(&self) -> Result<(), crate::NotReady> {
        // The last node keeps its shards until its activities end, but takes no new work.
        if self.worker.draining.is_cancelled() { Err(crate::NotReady::Stopping) } else { self.node.readiness() }
    }

    /// Counts since the start.
    pub fn metrics_snapshot(&self) -> MetricsSnapshot {
        self.node.engine.counters.snapshot(self.node.owner.warm.warm_count(), self.worker.code_running())
    }

    /// Which code an instance runs; `None` when there is no such instance.
    pub async fn get_orchestration_descriptor(&self, instance: &str) -> Option<OrchestrationDescriptor> {
        let info = self.client.get_instance_info(instance).await.ok()?;
        let (id, execution) = (InstanceId::new(instance), ExecutionId(info.current_execution_id));
        let first = self.node.engine.store.history(&id, execution, Some(EventId(1))).await.ok()?.pop();
        let parent_id = match first.map(|event| event.kind) {
            Some(EventKind::OrchestrationStarted { parent_id, .. }) => parent_id,
            _ => None,
        };
        Some(OrchestrationDescriptor {
            name: info.orchestration_name,
            version: info.orchestration_version,
            parent_instance: info.parent_instance_id,
            parent_id,
        })
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if !self.node.owner.stopping.is_cancelled() {
            self.stop();
        }
    }
}

/// The configured name, made unique for this start.
fn unique_name(configured: Option<&str>, surroundings: &Surroundings) -> String {
    format!("{}-{:016x}", configured.unwrap_or("node"), surroundings.random_bits())
}
