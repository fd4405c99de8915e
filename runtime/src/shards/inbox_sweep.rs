//! Finding inbox messages without a nudge: other processes wrote them, or their nudge was dropped or lost. Idle instances are
//! passivated here too.

use std::sync::Arc;
use std::time::Duration;

use outlast_core::{InstanceId, ShardId};
use outlast_storage::InboxCursor;

use crate::instances::mailbox::{Inbound, Mailboxes};
use crate::shards::owner::Owner;
use crate::telemetry::logging::RUNTIME;

/// Most rows of one read: ids of some hundred kilobytes.
pub(crate) const PAGE: usize = 10_000;
/// Longest time between looks for writes by other processes, in case that none was told.
const ELSEWHERE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a look at the inboxes that failed: messages whose notices were lost wait meanwhile.
const SWEEP_AGAIN: Duration = Duration::from_millis(200);
/// Time between two looks for idle instances: small beside the minute after which one is passivated by default.
const PASSIVATE_EVERY: Duration = Duration::from_secs(1);

/// Sweeps the inboxes when another process may have written or when nudges were dropped here, and passivates idle instances.
pub(crate) async fn watch_inboxes(owner: Arc<Owner>) {
    let (mut seen, mut written, mut generation) = (InboxCursor::default(), 0, owner.tenure.generation());
    let mut passivated = tokio::time::Instant::now();
    loop {
        let (now, skipped) = tokio::select! {
            biased;
            () = owner.stopping.cancelled() => return,
            now = owner.store.written_elsewhere(written, ELSEWHERE_TIMEOUT) => (now, false),
            () = owner.warm.skipped.some() => (written, true),
        };
        if owner.tenure.generation() != generation {
            // The store went back: the old cursor would skip rows that are written from now on.
            (seen, generation) = (InboxCursor::default(), owner.tenure.generation());
        }
        if now != written || skipped {
            let count = owner.warm.skipped.count();
            // Shards taken since the last sweep may have rows before `seen`: `take_over` reads their inboxes from the beginning.
            match sweep(&owner, &owner.tenure.held(), seen).await {
                Ok(last) => {
                    (seen, written) = (last, now);
                    owner.warm.skipped.swept(count);
                }
                Err(error) => {
                    tracing::warn!(target: RUNTIME, %error, "inboxes could not be read, trying again");
                    tokio::time::sleep(SWEEP_AGAIN).await;
                    owner.warm.skipped.sweep_is_due();
                }
            }
        }
        if passivated.elapsed() >= PASSIVATE_EVERY {
            owner.warm.passivate_idle();
            passivated = tokio::time::Instant::now();
        }
    }
}

/// Nudges all receivers of inbox rows after `after`; returns where the next sweep begins.
pub(crate) async fn sweep(
    owner: &Arc<Owner>,
    shards: &[ShardId],
    mut after: InboxCursor,
) -> Result<InboxCursor, outlast_storage::Error> {
    if shards.is_empty() {
        return Ok(after);
    }
    loop {
        let page = owner.store.arrivals(shards, after, PAGE).await?;
        after = page.next;
        for wake in page.receivers {
            admit(owner, &wake.instance, Inbound::Nudge).await;
        }
        if !page.more {
            return Ok(after);
        }
    }
}

/// Delivers input; waits first while too many instances wait for room.
pub(crate) async fn admit(owner: &Arc<Owner>, instance: &InstanceId, inbound: Inbound) {
    while owner.warm.waiting_count() > owner.limits.warm_instances_max && !owner.stopping.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    owner.warm.deliver(instance, inbound);
}
