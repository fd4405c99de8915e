//! The actor of one instance: a mailbox that runs turns until nothing waits.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use outlast_core::InstanceId;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::instances::mailbox::{Inbound, Mailbox};
use crate::instances::run_turn::{After, InstanceRun};
use crate::node::Node;
use crate::node::supervision::text_of;
use crate::telemetry::logging::RUNTIME;

/// Pause after a turn that panicked.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// Tells an actor that its mailbox has something.
#[derive(Debug)]
pub(crate) struct Run;

/// One instance.
pub(crate) struct InstanceActor {
    node: Arc<Node>,
    instance: InstanceId,
    mailbox: Arc<Mailbox>,
}

impl InstanceActor {
    pub(crate) fn new(node: Arc<Node>, instance: InstanceId, mailbox: Arc<Mailbox>) -> Self {
        Self { node, instance, mailbox }
    }
}

impl Actor for InstanceActor {
    type Msg = Run;
    type State = InstanceRun;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Run>, (): ()) -> Result<InstanceRun, ActorProcessingErr> {
        Ok(InstanceRun::new(Arc::clone(&self.node), self.instance.clone()))
    }

    async fn handle(&self, _: ActorRef<Run>, _: Run, run: &mut InstanceRun) -> Result<(), ActorProcessingErr> {
        // An actor that ended by itself would stay among the warm ones, and take messages for nobody.
        while let Err(panic) = AssertUnwindSafe(self.run_turns(run)).catch_unwind().await {
            // User code is caught where it runs, so this is a fault of ours; the store knows where the instance stands.
            let reason = format!("a turn panicked: {}", text_of(panic.as_ref()));
            tracing::error!(target: RUNTIME, instance = %self.instance, reason, "the instance is read again");
            self.node.troubles.turns.note(self.instance.clone(), reason);
            *run = InstanceRun::new(Arc::clone(&self.node), self.instance.clone());
            tokio::time::sleep(AFTER_PANIC).await;
            self.node.deliver(&self.instance, Inbound::Nudge);
        }
        Ok(())
    }
}

impl InstanceActor {
    /// Runs turns until nothing waits.
    async fn run_turns(&self, run: &mut InstanceRun) {
        let max = self.node.limits.messages_per_turn_max;
        loop {
            let inbound = if run.has_backlog() { Vec::new() } else { self.mailbox.take(max) };
            if inbound.is_empty() && !run.has_backlog() {
                return self.node.idle(&self.instance, &self.mailbox);
            }
            // Boxed, so that an idle actor does not keep the room that a turn needs.
            match Box::pin(run.turn(inbound)).await {
                After::Stay => {}
                After::Leave => {
                    if self.node.retire(&self.instance, &self.mailbox) {
                        return;
                    }
                }
            }
        }
    }
}
