//! Deletes the consumers of tags that are out of use. The server's own rule for idle consumers would also delete those
//! whose work waits for workers to be started.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_nats::jetstream::consumer::Info;
use futures::StreamExt as _;

use super::hub::{Hub, unavailable};
use super::subjects::Lane;
use crate::Error;

/// Longest time between two sweeps.
const SWEEP_EVERY_MAX: Duration = Duration::from_secs(600);

/// Sweeps until it is aborted.
pub(crate) async fn run(hub: Arc<Hub>) {
    let kept = hub.options.unused_tag_kept;
    let every = (kept / 4).clamp(Duration::from_millis(100), SWEEP_EVERY_MAX);
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = hub.answer(sweep(&hub, kept)).await {
            tracing::debug!(target: super::LOG, %error, "consumers out of use stay for now");
        }
    }
}

async fn sweep(hub: &Hub, kept: Duration) -> Result<(), Error> {
    let stream = hub.js.get_stream_no_info(hub.subjects.work_stream()).await.map_err(unavailable)?;
    let mut consumers = stream.consumers();
    let mut unused = Vec::new();
    while let Some(consumer) = consumers.next().await {
        let consumer = consumer.map_err(unavailable)?;
        match Lane::of_consumer(&consumer.name) {
            Some(lane @ (Lane::Tag(_) | Lane::Session(_))) if is_unused(&consumer, kept) => unused.push(lane),
            Some(_) | None => {}
        }
    }
    for lane in unused {
        stream.delete_consumer(&lane.consumer()).await.map_err(unavailable)?;
        hub.forget_lane(&lane);
        tracing::info!(target: super::LOG, ?lane, "a consumer out of use is deleted");
        // Somebody may have published just before, and must see its backlog.
        let left = stream.info_builder().subjects(hub.subjects.lane(&lane)).fetch().await.map_err(unavailable)?;
        if left.count().await > 0 {
            hub.create_lane(&lane).await?;
        }
    }
    Ok(())
}

fn is_unused(consumer: &Info, kept: Duration) -> bool {
    let busy = consumer.num_pending > 0 || consumer.num_ack_pending > 0 || consumer.num_waiting > 0;
    let moments = [Some(consumer.created), consumer.delivered.last_active, consumer.ack_floor.last_active];
    let last = moments.into_iter().flatten().map(|moment| moment.unix_timestamp()).max().unwrap_or(i64::MAX);
    let now = i64::try_from(UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()).unwrap_or(0);
    !busy && now.saturating_sub(last) > i64::try_from(kept.as_secs()).unwrap_or(i64::MAX)
}
