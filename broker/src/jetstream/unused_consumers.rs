//! Deletes the consumers of tags that are out of use, and what lies in queues of workers that are gone. The server's own rule for
//! idle consumers would also delete those whose work waits for workers to be started.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_nats::jetstream::consumer::Info;
use futures::StreamExt as _;

use super::server::{Server, unavailable};
use super::subjects::WorkQueue;
use crate::Error;

/// Longest time between two sweeps. An unused consumer costs the server little, and each sweep lists them all.
const SWEEP_EVERY_MAX: Duration = Duration::from_secs(600);

/// Sweeps until it is aborted.
pub(crate) async fn run(server: Arc<Server>) {
    let kept = server.options.unused_tag_kept;
    let every = (kept / 4).clamp(Duration::from_millis(100), SWEEP_EVERY_MAX);
    let mut orphans = BTreeSet::new();
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = server.answer(sweep(&server, kept, &mut orphans)).await {
            tracing::debug!(target: super::LOG, %error, "consumers out of use stay for now");
        }
    }
}

async fn sweep(server: &Server, kept: Duration, orphans: &mut BTreeSet<WorkQueue>) -> Result<(), Error> {
    let stream = server.js.get_stream_no_info(server.subjects.work_stream()).await.map_err(unavailable)?;
    let mut consumers = stream.consumers();
    let (mut unused, mut workers) = (Vec::new(), BTreeSet::new());
    while let Some(consumer) = consumers.next().await {
        let consumer = consumer.map_err(unavailable)?;
        match WorkQueue::of_consumer(&consumer.name) {
            Some(queue @ (WorkQueue::Tag(_) | WorkQueue::Session(_))) if is_unused(&consumer, kept) => {
                unused.push(queue)
            }
            Some(queue @ WorkQueue::Worker(_)) => drop(workers.insert(queue)),
            Some(_) | None => {}
        }
    }
    let subjects = stream.info_builder().subjects(server.subjects.workers()).fetch().await.map_err(unavailable)?;
    let queues: BTreeSet<WorkQueue> = subjects
        .filter_map(|subject| {
            std::future::ready(subject.ok().and_then(|(subject, _)| server.subjects.worker_of(&subject)))
        })
        .collect()
        .await;
    let now: BTreeSet<WorkQueue> = queues.difference(&workers).cloned().collect();
    // Twice in a row: a worker may begin between the two looks. Its owner offers again what was for one that is gone.
    for queue in now.intersection(orphans) {
        stream.purge().filter(server.subjects.queue(queue)).await.map_err(unavailable)?;
        tracing::info!(target: super::LOG, ?queue, "dropped what was queued for a worker that is gone");
    }
    *orphans = now;
    for queue in unused {
        stream.delete_consumer(&queue.consumer()).await.map_err(unavailable)?;
        server.forget_queue(&queue);
        tracing::info!(target: super::LOG, ?queue, "a consumer out of use is deleted");
        // Somebody may have published just before, and must see its backlog.
        let left = stream.info_builder().subjects(server.subjects.queue(&queue)).fetch().await.map_err(unavailable)?;
        if left.count().await > 0 {
            server.create_queue(&queue).await?;
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
