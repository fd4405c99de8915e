//! A node: builds its parts, none of which knows the node.
//!
//! ```text
//! Tenure, Neighbours, Problems      what is held, who is there, what stands still
//!   └─ WarmInstances, DueQueue      instances in memory, and when they are due
//!        └─ Dispatcher              activities until their outcome is in a history
//!             ├─ Engine             the turns of all instances
//!             └─ Owner              the duties of a shard's owner
//! ```

pub(crate) mod bounds;
pub(crate) mod dedicated_thread;
pub(crate) mod node_task;
pub(crate) mod presence;
pub(crate) mod readiness;
pub(crate) mod supervision;
pub(crate) mod tasks;

use std::sync::Arc;

use outlast_broker::Broker;
use outlast_client::Surroundings;
use outlast_core::{NodeId, OrchestrationRegistry};
use outlast_storage::Store;
use tokio_util::sync::CancellationToken;

use crate::RuntimeOptions;
use crate::dispatch::{DispatchParts, Dispatcher};
use crate::instances::announcement::Audience;
use crate::instances::committer::Committer;
use crate::instances::due_queue::DueQueue;
use crate::instances::engine::Engine;
use crate::instances::mailbox::Mailboxes;
use crate::instances::warm::{StartsActors, WarmInstances, WarmOptions};
use crate::node::bounds::permits;
use crate::node::supervision::Supervisor;
use crate::problems::known::Problems;
use crate::shards::neighbours::Neighbours;
use crate::shards::owner::Owner;
use crate::shards::tenure::Tenure;
use crate::telemetry::counters::Counters;

/// A node: holds shards and runs their instances.
pub(crate) struct Node {
    pub(crate) owner: Arc<Owner>,
    pub(crate) engine: Arc<Engine>,
}

/// What a node is made of.
pub(crate) struct NodeParts {
    pub(crate) id: NodeId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) orchestrations: OrchestrationRegistry,
    pub(crate) options: Arc<RuntimeOptions>,
    pub(crate) surroundings: Surroundings,
}

impl Node {
    pub(crate) fn new(parts: NodeParts) -> Self {
        let NodeParts { id, store, broker, orchestrations, options, surroundings } = parts;
        let (limits, stopping) = (Arc::new(options.limits.clone()), CancellationToken::new());
        let supervisor = Supervisor::new(stopping.clone());
        let (tenure, neighbours) = (Arc::new(Tenure::new()), Arc::new(Neighbours::new(id.clone())));
        let (problems, counters) = (Arc::new(Problems::default()), Arc::new(Counters::default()));
        let warm = WarmOptions { max: limits.warm_instances_max, passivate_after: options.passivate_after };
        let (warm, due_queue) = (Arc::new(WarmInstances::new(warm, stopping.clone())), Arc::new(DueQueue::default()));
        let dispatcher = Arc::new(Dispatcher::new(DispatchParts {
            store: Arc::clone(&store),
            broker: Arc::clone(&broker),
            options: Arc::clone(&options),
            tenure: Arc::clone(&tenure),
            neighbours: Arc::clone(&neighbours),
            problems: Arc::clone(&problems),
            counters: Arc::clone(&counters),
            supervisor: Arc::clone(&supervisor),
            stopping: stopping.clone(),
            surroundings: surroundings.clone(),
            instances: Arc::clone(&warm) as Arc<dyn Mailboxes>,
        }));
        let owner = Arc::new(Owner {
            id,
            store: Arc::clone(&store),
            broker: Arc::clone(&broker),
            limits: Arc::clone(&limits),
            tenure: Arc::clone(&tenure),
            neighbours: Arc::clone(&neighbours),
            warm: Arc::clone(&warm),
            due_queue: Arc::clone(&due_queue),
            dispatcher: Arc::clone(&dispatcher),
            problems: Arc::clone(&problems),
            supervisor: Arc::clone(&supervisor),
            stopping,
            surroundings: surroundings.clone(),
        });
        let audience =
            Audience { broker: Arc::clone(&broker), counters: Arc::clone(&counters), problems: Arc::clone(&problems) };
        let committer =
            Committer::start(Arc::clone(&store), audience, limits.commit_group_max, supervisor, &surroundings);
        let turns = permits(limits.turns_in_flight_max);
        let engine = Arc::new(Engine {
            store,
            broker,
            orchestrations,
            options,
            limits,
            committer,
            turns,
            tenure,
            neighbours,
            dispatcher,
            warm,
            due_queue,
            problems,
            counters,
            surroundings,
        });
        let starter = Arc::downgrade(&engine);
        engine.warm.set_starter(starter as std::sync::Weak<dyn StartsActors>);
        Self { owner, engine }
    }

    /// Ends all work of the node and drops its memory; the store has all of it.
    pub(crate) fn stop(&self) {
        self.owner.stopping.cancel();
        self.owner.warm.passivate_all();
        self.owner.due_queue.clear();
        self.owner.dispatcher.outstanding.clear();
    }

    /// Whether no turn is under way, and nothing waits for a retry.
    pub(crate) fn is_quiet(&self) -> bool {
        self.owner.dispatcher.is_quiet() && self.owner.warm.is_quiet()
    }
}
