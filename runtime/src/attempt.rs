//! One attempt of an activity: run, report until the owner has committed, ack.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outlast_broker::{Delivery, Report, ReportReply, ReportResult, Settle};
use outlast_core::{ActivityItem, AttemptInfo, EventKind, HistoryEvent, Message, MessageKind, ShardId, Verdict};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::dispatch::result_id;
use crate::execute::execute;
use crate::sessions::Claim;
use crate::worker::Worker;

/// Pause before a report is repeated.
const REPORT_AGAIN: Duration = Duration::from_millis(20);
const REPORT_AGAIN_MAX: Duration = Duration::from_secs(1);
/// How often the owner is asked whether an item is still wanted.
const ASK_TRIES: u32 = 5;

pub(crate) async fn run(
    worker: Arc<Worker>,
    delivery: Delivery,
    cancelled: CancellationToken,
    (slot, report): (OwnedSemaphorePermit, OwnedSemaphorePermit),
) {
    let Delivery { mut item, queued_ms, redelivered, settle } = delivery;
    if let Err(instead) = prepare(&worker, &mut item, redelivered).await {
        worker.lock_running().remove(&item.key);
        return settle(instead);
    }
    let item = Arc::new(item);
    crate::meter::begun(&item, queued_ms, redelivered);
    let started = Instant::now();
    let result = match worker.activities.resolve_handler(&item.name) {
        None => {
            tracing::warn!(target: crate::observability::RUNTIME, activity = %item.name, worker = %worker.id, "activity is not registered");
            ReportResult::Unregistered { activity: item.name.clone() }
        }
        Some(handler) => {
            if item.timeouts.get_schedule_to_start().is_some() && !redelivered {
                let (worker, item) = (Arc::clone(&worker), Arc::clone(&item));
                tokio::spawn(async move { ask(&worker, &item).await });
            }
            let outcome = execute(&worker, &item, (handler, cancelled, redelivered)).await;
            crate::meter::ran(&item, started.elapsed());
            let ran_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let run = AttemptInfo { worker: worker.id.as_str().to_owned(), attempt: item.attempt, queued_ms, ran_ms };
            ReportResult::Done { outcome, run }
        }
    };
    // A slot is held only while user code runs; the finished result waits outside for its commit.
    drop(slot);
    worker.lock_running().remove(&item.key);
    if let Some(session) = &item.session_id {
        worker.lock_sessions().end(session);
    }
    // An attempt that this worker's own end has cut short has failed nobody: it runs again elsewhere.
    let cut_short = worker.stopped.is_cancelled() && matches!(&result, ReportResult::Done { outcome: Err(_), .. });
    let settled = !cut_short && deliver_report(&worker, &item, result).await;
    drop(report);
    if settled {
        settle(Settle::Ack);
    } else {
        settle(Settle::Requeue);
    }
}

/// Makes sure that the item is wanted, its session is held here and its input is at hand; otherwise says where it goes instead.
async fn prepare(worker: &Arc<Worker>, item: &mut ActivityItem, redelivered: bool) -> Result<(), Settle> {
    if redelivered && !ask(worker, item).await {
        return Err(Settle::Ack);
    }
    let Some(session) = item.session_id.clone() else { return read_input(worker, item).await };
    match worker.claim(&session).await {
        Claim::Mine => {}
        Claim::Other(owner) => return Err(Settle::Forward(owner)),
        Claim::Refused => {
            tokio::time::sleep(REPORT_AGAIN).await;
            return Err(Settle::Requeue);
        }
    }
    let read = read_input(worker, item).await;
    if read.is_err() {
        worker.lock_sessions().end(&session);
    }
    read
}

async fn read_input(worker: &Arc<Worker>, item: &mut ActivityItem) -> Result<(), Settle> {
    if !item.input_stored {
        return Ok(());
    }
    let key = &item.key;
    match worker.store.event(&key.instance, key.execution, key.event).await {
        Ok(Some(HistoryEvent { kind: EventKind::ActivityScheduled { input, .. }, .. })) => {
            item.input = input;
            Ok(())
        }
        // Deleted since: nobody waits for it.
        Ok(_) => Err(Settle::Ack),
        Err(error) => {
            tracing::warn!(target: crate::observability::RUNTIME, activity = %item.name, %error, "input was not read, trying again");
            tokio::time::sleep(REPORT_AGAIN_MAX).await;
            Err(Settle::Requeue)
        }
    }
}

/// Tells the owner that the item begins; `false` when its outcome is not waited for. Without an answer it begins: running
/// twice is allowed, not running is not.
async fn ask(worker: &Arc<Worker>, item: &ActivityItem) -> bool {
    let mut shard = ShardId::of(&item.key.instance, worker.shards);
    for _ in 0..ASK_TRIES {
        let report = Report { key: item.key.clone(), token: item.token, result: ReportResult::Begun };
        match worker.broker.report(shard, report).await {
            ReportReply::Settled(verdict) => return verdict == Verdict::Applied,
            ReportReply::Moved(to) if to != shard => shard = to,
            ReportReply::Moved(_) | ReportReply::TryAgain => tokio::time::sleep(REPORT_AGAIN * 5).await,
        }
    }
    true
}

/// Puts a result that is too large for a report into the inbox, where its owner finds it. `false` when this process ends
/// first.
async fn lay_down(worker: &Arc<Worker>, item: &ActivityItem, (output, run): (&str, &AttemptInfo)) -> bool {
    let kind = MessageKind::ActivityDone {
        execution: item.key.execution,
        event: item.key.event,
        token: item.token,
        outcome: Ok(output.to_owned()),
        run: Some(run.clone()),
    };
    let message = Message { id: result_id(&item.key, item.token), kind };
    loop {
        match worker.store.send(&item.key.instance, message.clone(), usize::MAX).await {
            Ok(receipt) => {
                if let Some(shard) = receipt.nudge {
                    worker.broker.nudge(shard, item.key.instance.clone());
                }
                return true;
            }
            // Deleted since: nobody waits for it.
            Err(outlast_storage::Error::InstanceNotFound(_)) => return true,
            Err(error) => {
                tracing::warn!(target: crate::observability::RUNTIME, activity = %item.name, %error, "result was not stored, trying again");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(REPORT_AGAIN_MAX) => {}
            () = worker.stopped.cancelled() => return false,
        }
    }
}

/// Repeats the report until its owner, whoever that is by then, has settled it. `false` when this process ends first.
async fn deliver_report(worker: &Arc<Worker>, item: &ActivityItem, result: ReportResult) -> bool {
    if let ReportResult::Done { outcome: Ok(output), run } = &result
        && output.len() > worker.broker.payload_bytes_max()
    {
        return lay_down(worker, item, (output, run)).await;
    }
    let mut shard = ShardId::of(&item.key.instance, worker.shards);
    let mut pause = REPORT_AGAIN;
    loop {
        let report = Report { key: item.key.clone(), token: item.token, result: result.clone() };
        match worker.broker.report(shard, report).await {
            ReportReply::Settled(_) => return true,
            ReportReply::Moved(to) if to != shard => {
                shard = to;
                continue;
            }
            ReportReply::Moved(_) | ReportReply::TryAgain => {}
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = worker.stopped.cancelled() => return false,
        }
        pause = (pause * 2).min(REPORT_AGAIN_MAX);
    }
}
