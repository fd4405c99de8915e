//! Deletes the consumers of tags that are out of use, and what lies in lanes of workers that are gone. The server's own rule for
//! idle consumers would also delete those whose work waits for workers to be started.

use std::collections::BTreeSet;
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
    let mut orphans = BTreeSet::new();
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = hub.answer(sweep(&hub, kept, &mut orphans)).await {
            tracing::debug!(target: super::LOG, %error, "consumers out of use stay for now");
        }
    }
}

async fn sweep(hub: &Hub, kept: Duration, orphans: &mut BTreeSet<Lane>) -> Result<(), Error> {
    let stream = hub.js.get_stream_no_info(hub.subjects.work_stream()).await.map_err(unavailable)?;
    let mut consumers = stream.consumers();
    let (mut unused, mut workers) = (Vec::new(), BTreeSet::new());
    while let Some(consumer) = consumers.next().await {
        let consumer = consumer.map_err(unavailable)?;
        match Lane::of_consumer(&consumer.name) {
            Some(lane @ (Lane::Tag(_) | Lane::Session(_))) if is_unused(&consumer, kept) => unused.push(lane),
            Some(lane @ Lane::Worker(_)) => drop(workers.insert(lane)),
            Some(_) | None => {}
        }
    }
    let subjects = stream.info_builder().subjects(hub.subjects.workers()).fetch().await.map_err(unavailable)?;
    let lanes: BTreeSet<Lane> = subjects
        .filter_map(|subject| {
            std::future::ready(subject.ok().and_then(|(subject, _)| hub.subjects.worker_of(&subject)))
        })
        .collect()
        .await;
    let now: BTreeSet<Lane> = lanes.difference(&workers).cloned().collect();
    // Twice in a row: a worker may begin between the two looks. Its owner offers again what was for one that is gone.
    for lane in now.intersection(orphans) {
        stream.purge().filter(hub.subjects.lane(lane)).await.map_err(unavailable)?;
        tracing::info!(target: super::LOG, ?lane, "what was brought to a worker that is gone is dropped");
    }
    *orphans = now;
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
