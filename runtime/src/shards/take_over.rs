//! Taking shards over: reading, once, everything that may have waited for an owner.

use std::sync::Arc;
use std::time::Duration;

use outlast_core::{InstanceId, ShardId};
use outlast_storage::InboxCursor;

use crate::instances::mailbox::Inbound;
use crate::node::node_task::NodeTask;
use crate::shards::due_times::{HORIZON, load_due};
use crate::shards::inbox_sweep::{PAGE, admit, sweep};
use crate::shards::owner::Owner;
use crate::telemetry::logging::RUNTIME;

/// Pause after a try that failed: the shard's instances wait meanwhile.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Takes over shards: reads, once, everything that may have waited for an owner.
pub(crate) fn take_over(owner: &Arc<Owner>, shards: Vec<ShardId>) {
    let (kept, shards) = (Arc::clone(owner), Arc::new(shards));
    let done = owner.stopping.child_token();
    let asked = done.clone();
    owner.surroundings.spawn(Arc::clone(&owner.supervisor).keep(NodeTask::TakeOver, asked, move || {
        let (owner, shards, done) = (Arc::clone(&kept), Arc::clone(&shards), done.clone());
        async move {
            while let Err(error) = try_take_over(&owner, &shards).await {
                tracing::warn!(target: RUNTIME, %error, "taking over failed, trying again");
                tokio::time::sleep(AGAIN_AFTER).await;
                if done.is_cancelled() {
                    return;
                }
            }
            done.cancel();
        }
    }));
}

async fn try_take_over(owner: &Arc<Owner>, shards: &[ShardId]) -> Result<(), outlast_storage::Error> {
    load_due(owner, shards, owner.store.now().plus(HORIZON)).await?;
    sweep(owner, shards, InboxCursor::default()).await?;
    let mut after: Option<InstanceId> = None;
    loop {
        let page = owner.store.pending(shards, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.instance.clone());
        for wake in page {
            admit(owner, &wake.instance, Inbound::Wake).await;
        }
    }
}
