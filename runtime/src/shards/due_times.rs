//! Waking instances when they are due. What comes within a minute is in memory; what is due later stays in the store.

use std::sync::Arc;
use std::time::Duration;

use outlast_core::{Millis, ShardId};

use crate::instances::mailbox::{Inbound, Mailboxes};
use crate::shards::owner::Owner;
use crate::telemetry::logging::RUNTIME;

/// What is due within this time is kept in memory; of a hundred million timers, only the next minute's are.
pub(crate) const HORIZON: Duration = Duration::from_secs(60);
/// Time between two reads of the wake-ups within the horizon: half of it, so that a read may fail once.
const HORIZON_STEP: Duration = Duration::from_secs(30);
/// Most rows of one read, more than a node can wake in a minute; the next read gets the rest.
const DUE_MAX: usize = 1_000_000;
/// Pause after a look that failed: what is due soon is in memory already.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Wakes instances when they are due, by the store's clock.
pub(crate) async fn wake_due(owner: Arc<Owner>) {
    let mut next_look = Millis(0);
    loop {
        let now = owner.store.now();
        let mut is_known = true;
        if now >= next_look {
            is_known = look_ahead(&owner, now).await;
            next_look = now.plus(if is_known { HORIZON_STEP } else { LOOK_AGAIN });
        }
        for instance in owner.due_queue.take_due(owner.store.now()) {
            owner.warm.deliver(&instance, Inbound::Wake);
        }
        if is_known {
            owner.due_queue.note_woken(now);
        }
        // An entry that becomes the soonest after this line is not missed: `Notify` keeps its permit for the `select!`.
        let until = owner.due_queue.next().map_or(next_look, |at| at.min(next_look));
        tokio::select! {
            biased;
            () = owner.due_queue.sooner() => {}
            () = owner.stopping.cancelled() => return,
            () = owner.store.sleep_until(until) => {}
        }
    }
}

/// Reads the wake-ups within the horizon; `false` if that failed.
async fn look_ahead(owner: &Arc<Owner>, now: Millis) -> bool {
    let horizon = now.plus(HORIZON);
    owner.due_queue.extend_to(horizon);
    let read = load_due(owner, &owner.tenure.held(), horizon).await;
    if let Err(error) = &read {
        tracing::warn!(target: RUNTIME, %error, "due instances could not be read, trying again");
    }
    read.is_ok()
}

pub(crate) async fn load_due(
    owner: &Arc<Owner>,
    shards: &[ShardId],
    horizon: Millis,
) -> Result<(), outlast_storage::Error> {
    if shards.is_empty() {
        return Ok(());
    }
    for due in owner.store.due(shards, horizon, DUE_MAX).await? {
        owner.due_queue.set_if_sooner(&due.instance, due.at);
    }
    Ok(())
}
