//! Offering outstanding activities again, and ending those that no worker has begun in time.

use std::sync::Arc;
use std::time::Duration;

use outlast_core::{ActivityItem, AppErrorKind, ErrorDetails};

use crate::dispatch::Dispatcher;
use crate::telemetry::logging::RUNTIME;

/// Time between two looks through the outstanding activities: small beside the eight seconds after which one is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time between two looks for activities that nobody has begun in time: so much later than its limit is one ended.
const LATE_EVERY: Duration = Duration::from_millis(100);
/// Items that are offered in one publish: about the pipeline of the broker.
const OFFERS: usize = 1_000;

/// Offers once more all activities that the broker was given: some may have been lost on their way when a task ended.
pub(crate) async fn offer_all(dispatcher: &Arc<Dispatcher>) {
    dispatcher.outstanding.mark_all_due();
    for items in dispatcher.outstanding.due().chunks(OFFERS) {
        dispatcher.hand_out(items.to_vec(), true).await;
    }
}

/// Offers outstanding activities again: after a loss at once, otherwise after a while.
pub(crate) async fn offer_again(dispatcher: Arc<Dispatcher>) {
    let mut losses = dispatcher.parts.broker.state().losses;
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut told = true;
    loop {
        tokio::select! {
            biased;
            () = dispatcher.parts.stopping.cancelled() => return,
            _ = look.tick() => {}
            changed = losses.changed(), if told => {
                told = changed.is_ok();
                if told {
                    let count = dispatcher.outstanding.len();
                    tracing::warn!(target: RUNTIME, count, "the broker may have lost work, all that is outstanding is offered again");
                    dispatcher.outstanding.mark_all_due();
                }
            }
        }
        let generation = dispatcher.parts.tenure.generation();
        dispatcher.outstanding.keep_only(|place| {
            dispatcher.parts.tenure.epoch(place.shard) == Some(place.epoch) && place.generation == generation
        });
        let mut due = dispatcher.outstanding.due();
        while !due.is_empty() {
            let items = &due[..due.len().min(OFFERS)];
            if let Err(error) = dispatcher.publish(items, true).await {
                tracing::warn!(target: RUNTIME, %error, count = due.len(), "activities were not offered again, trying soon");
                dispatcher.outstanding.refused(&due);
                break;
            }
            crate::telemetry::metrics::redispatched(items);
            due.drain(..items.len());
        }
    }
}

/// Gives the broker activities that have waited for room.
pub(crate) async fn give_waiting(dispatcher: Arc<Dispatcher>) {
    loop {
        let admitted = tokio::select! {
            biased;
            () = dispatcher.parts.stopping.cancelled() => return,
            admitted = dispatcher.outstanding.admitted() => admitted,
        };
        let (given_before, new): (Vec<_>, Vec<_>) = admitted.into_iter().partition(|(_, may_have_run)| *may_have_run);
        for (items, may_have_run) in [(new, false), (given_before, true)] {
            let items: Vec<ActivityItem> = items.into_iter().map(|(item, _)| item).collect();
            for items in items.chunks(OFFERS) {
                dispatcher.hand_out(items.to_vec(), may_have_run).await;
            }
        }
    }
}

/// Ends activities that no worker has begun in time.
pub(crate) async fn end_late(dispatcher: Arc<Dispatcher>) {
    loop {
        tokio::select! {
            biased;
            () = dispatcher.parts.stopping.cancelled() => return,
            () = tokio::time::sleep(LATE_EVERY) => {}
        }
        let late = dispatcher.outstanding.take_late();
        // No await before the last outcome is delivered: nothing else in memory would end what `take_late` took out.
        for item in &late {
            let limit = item.timeouts.get_schedule_to_start().unwrap_or_default();
            let message = format!("timeout: no worker has begun the activity within {limit:?} (schedule_to_start)");
            let details = ErrorDetails::application(AppErrorKind::ActivityFailed, message);
            // Its worker is told to stop once this is committed: until then its own outcome may still come first.
            dispatcher.complete(&item.key, item.token, Err(details));
        }
    }
}
