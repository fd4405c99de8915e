//! One attempt of an activity: run, report until the owner has committed, ack.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outlast_broker::{Delivery, Report, ReportReply, ReportResult, Settle};
use outlast_core::{
    ActivityItem, ActivityOutcome, AppErrorKind, AttemptInfo, ErrorDetails, EventKind, HistoryEvent, Message,
    MessageKind, ShardId,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{AbortHandle, JoinError};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::ActivityContext;
use crate::activity::ActivityHandler;
use crate::activity_context::idempotency_key;
use crate::dispatch::result_id;
use crate::sessions::Claim;
use crate::worker::Worker;

/// Pause before a report is repeated.
const REPORT_AGAIN: Duration = Duration::from_millis(20);
const REPORT_AGAIN_MAX: Duration = Duration::from_secs(1);

pub(crate) async fn run(
    worker: Arc<Worker>,
    delivery: Delivery,
    cancelled: CancellationToken,
    (slot, report): (OwnedSemaphorePermit, OwnedSemaphorePermit),
) {
    let Delivery { mut item, queued_ms, settle, .. } = delivery;
    if let Err(instead) = prepare(&worker, &mut item).await {
        worker.lock_running().remove(&item.key);
        return settle(instead);
    }
    let item = Arc::new(item);
    let started = Instant::now();
    let result = match worker.activities.resolve_handler(&item.name) {
        None => {
            tracing::warn!(target: crate::observability::RUNTIME, activity = %item.name, worker = %worker.id, "activity is not registered");
            ReportResult::Unregistered { activity: item.name.clone() }
        }
        Some(handler) => {
            let outcome = execute(&worker, &item, (handler, cancelled)).await;
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
    let settled = deliver_report(&worker, &item, result).await;
    drop(report);
    if settled {
        settle(Settle::Ack);
    } else {
        settle(Settle::Requeue);
    }
}

/// Makes sure that the item's session is held here and its input is at hand; otherwise says where it goes instead.
async fn prepare(worker: &Arc<Worker>, item: &mut ActivityItem) -> Result<(), Settle> {
    if let Some(session) = &item.session_id {
        match worker.claim(session).await {
            Claim::Mine => {}
            Claim::Other(owner) => return Err(Settle::Forward(owner)),
            Claim::Refused => {
                tokio::time::sleep(REPORT_AGAIN).await;
                return Err(Settle::Requeue);
            }
        }
    }
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

/// Runs user code; a panic is an error, an abort after the grace period too.
async fn execute(
    worker: &Arc<Worker>,
    item: &Arc<ActivityItem>,
    (handler, cancelled): (ActivityHandler, CancellationToken),
) -> ActivityOutcome {
    let shared = (worker.client.clone(), Arc::clone(&worker.heartbeats));
    let context = ActivityContext::new(Arc::clone(item), worker.id.as_str().to_owned(), cancelled.clone(), shared);
    let span = tracing::info_span!(
        target: crate::observability::ACTIVITY,
        "activity",
        instance = %item.key.instance,
        execution = item.key.execution.0,
        orchestration = %item.orchestration,
        activity = %item.name,
        worker = %worker.id,
        attempt = item.attempt,
    );
    let input = item.input.clone();
    // The closure itself may panic before it returns its future, so it is called inside the task.
    let task = tokio::spawn(async move { handler(context, input).await }.instrument(span));
    let abort = AbortOnDrop(task.abort_handle());
    let grace = worker.options.activity_cancellation_grace_period;
    let result = tokio::select! {
        result = task => result,
        () = overdue(cancelled, grace) => {
            drop(abort);
            return Err(application("activity was cancelled and aborted after its grace period".to_owned()));
        }
    };
    let outcome = match result {
        Ok(Ok(output)) => check_size(worker, output),
        Ok(Err(error)) => Err(application(error)),
        Err(join) => Err(application(panic_message(join))),
    };
    if outcome.is_ok() {
        worker.heartbeats.forget(&idempotency_key(item));
    }
    outcome
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn overdue(cancelled: CancellationToken, grace: Duration) {
    cancelled.cancelled().await;
    tokio::time::sleep(grace).await;
}

fn check_size(worker: &Worker, output: String) -> ActivityOutcome {
    match worker.options.limits.check_payload("activity result", &output) {
        Ok(()) => Ok(output),
        Err(refused) => Err(application(refused.to_string())),
    }
}

fn application(message: String) -> ErrorDetails {
    ErrorDetails::application(AppErrorKind::ActivityFailed, message)
}

fn panic_message(join: JoinError) -> String {
    let Ok(panic) = join.try_into_panic() else { return "activity was aborted".to_owned() };
    let panic: Box<dyn Any + Send> = panic;
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("activity panicked: {}", text.unwrap_or_else(|| "without a message".to_owned()))
}

/// A result that is too large for a message lies down in the inbox; its owner finds it there.
async fn lay_down(
    worker: &Arc<Worker>,
    item: &ActivityItem,
    result: &ReportResult,
) -> Result<bool, outlast_storage::Error> {
    let ReportResult::Done { outcome: Ok(output), run } = result else { return Ok(false) };
    if output.len() <= worker.broker.payload_bytes_max() {
        return Ok(false);
    }
    let (execution, event, token) = (item.key.execution, item.key.event, item.token);
    let (outcome, run) = (Ok(output.clone()), Some(run.clone()));
    let kind = MessageKind::ActivityDone { execution, event, token, outcome, run };
    let message = Message { id: result_id(&item.key, item.token), kind };
    match worker.store.send(&item.key.instance, message, usize::MAX).await {
        Ok(receipt) => {
            if let Some(shard) = receipt.nudge {
                worker.broker.nudge(shard, item.key.instance.clone());
            }
            Ok(true)
        }
        // Deleted since: nobody waits for it.
        Err(outlast_storage::Error::InstanceNotFound(_)) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Repeats the report until its owner, whoever that is by then, has settled it. `false` when this process ends first.
async fn deliver_report(worker: &Arc<Worker>, item: &ActivityItem, result: ReportResult) -> bool {
    let mut shard = ShardId::of(&item.key.instance, worker.shards);
    let mut pause = REPORT_AGAIN;
    loop {
        match lay_down(worker, item, &result).await {
            Ok(true) => return true,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(target: crate::observability::RUNTIME, activity = %item.name, %error, "result was not stored, trying again");
                tokio::select! {
                    () = tokio::time::sleep(REPORT_AGAIN_MAX) => continue,
                    () = worker.stopped.cancelled() => return false,
                }
            }
        }
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
