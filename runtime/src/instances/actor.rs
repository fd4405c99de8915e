//! The actor of one instance: a mailbox that runs turns until nothing waits.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use outlast_core::InstanceId;
use ractor::{Actor, ActorProcessingErr, ActorRef, ActorRuntime, SpawnErr};

use crate::instances::engine::Engine;
use crate::instances::mailbox::{Inbound, Mailbox, Mailboxes, Run};
use crate::instances::run_turn::{After, InstanceRun};
use crate::instances::warm::StartsActors;
use crate::node::supervision::text_of;
use crate::telemetry::logging::RUNTIME;

/// Pause after a turn that panicked: it would most likely do so again at once, and fill the log.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// One instance.
struct InstanceActor {
    engine: Arc<Engine>,
    instance: InstanceId,
    mailbox: Arc<Mailbox>,
}

impl StartsActors for Engine {
    fn start_actor(self: Arc<Self>, instance: InstanceId, mailbox: Arc<Mailbox>) -> Result<ActorRef<Run>, SpawnErr> {
        let actor = InstanceActor { engine: self, instance, mailbox };
        ActorRuntime::spawn_instant(None, actor, ()).map(|(actor, _)| actor)
    }
}

impl Actor for InstanceActor {
    type Msg = Run;
    type State = InstanceRun;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Run>, (): ()) -> Result<InstanceRun, ActorProcessingErr> {
        Ok(InstanceRun::new(Arc::clone(&self.engine), self.instance.clone()))
    }

    async fn handle(&self, _: ActorRef<Run>, _: Run, run: &mut InstanceRun) -> Result<(), ActorProcessingErr> {
        // An actor that died of a panic would stay in the warm set and swallow messages.
        while let Err(panic) =
            AssertUnwindSafe(self.engine.surroundings.steer(self.run_turns(run))).catch_unwind().await
        {
            // Panics of user code are caught where it runs, so this one is our bug. The store has the instance's state.
            let reason = format!("a turn panicked: {}", text_of(panic.as_ref()));
            tracing::error!(target: RUNTIME, instance = %self.instance, reason, "the instance is read again");
            self.engine.problems.troubles.turns.note(self.instance.clone(), reason);
            // The input that the panic dropped is not lost: its rows are still in the inbox, and workers report again.
            *run = InstanceRun::new(Arc::clone(&self.engine), self.instance.clone());
            tokio::time::sleep(AFTER_PANIC).await;
            self.engine.warm.deliver(&self.instance, Inbound::Nudge);
        }
        Ok(())
    }
}

impl InstanceActor {
    /// Runs turns until nothing waits.
    async fn run_turns(&self, run: &mut InstanceRun) {
        let max = self.engine.limits.messages_per_turn_max;
        loop {
            let inbound = if run.has_backlog() { Vec::new() } else { self.mailbox.take(max) };
            if inbound.is_empty() && !run.has_backlog() {
                return self.engine.warm.idle(&self.instance, &self.mailbox);
            }
            // Boxed, so that an idle actor does not keep the memory that a turn needs.
            match Box::pin(run.turn(inbound)).await {
                After::Stay => {}
                After::Leave => {
                    if self.engine.warm.retire(&self.instance, &self.mailbox) {
                        return;
                    }
                }
            }
        }
    }
}
