//! The actor of one instance: a mailbox that runs turns until nothing waits.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use outlast_core::InstanceId;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::mailbox::{Inbound, Mailbox};
use crate::node::Node;
use crate::observability::RUNTIME;
use crate::run_turn::{After, InstanceRun};

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
        let max = self.node.limits.messages_per_turn_max;
        loop {
            let inbound = if run.has_backlog() { Vec::new() } else { self.mailbox.take(max) };
            if inbound.is_empty() && !run.has_backlog() {
                self.node.idle(&self.instance, &self.mailbox);
                return Ok(());
            }
            // Boxed, so that an idle actor does not keep the room that a turn needs.
            match AssertUnwindSafe(Box::pin(run.turn(inbound))).catch_unwind().await {
                Ok(After::Stay) => {}
                Err(_panic) => {
                    // User code is caught where it runs, so this is a fault of ours; the store knows where the instance stands.
                    tracing::error!(target: RUNTIME, instance = %self.instance, "a turn panicked, the instance is read again");
                    *run = InstanceRun::new(Arc::clone(&self.node), self.instance.clone());
                    tokio::time::sleep(AFTER_PANIC).await;
                    self.node.deliver(&self.instance, Inbound::Nudge);
                }
                Ok(After::Leave) => {
                    if self.node.retire(&self.instance, &self.mailbox) {
                        return Ok(());
                    }
                }
            }
        }
    }
}
