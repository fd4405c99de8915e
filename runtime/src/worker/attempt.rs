//! One attempt of an activity: run, report until the owner has committed, ack.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use outlast_broker::{Delivery, Question, Report, ReportReply, ReportResult, Settle, ShardRequest};
use outlast_core::{
    ActivityItem, ActivityRef, AttemptInfo, EventKind, HistoryEvent, Message, MessageKind, Millis, ShardId,
};
use outlast_storage::SendOptions;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::code::heartbeat::Heartbeat;
use crate::dispatch::result_id;
use crate::node::supervision::text_of;
use crate::problems::lasting::Untaken;
use crate::telemetry::counters::Counters;
use crate::worker::execute::{Call, Executed, execute};
use crate::worker::sessions::{Claim, SessionUse};
use crate::worker::wanted::Wanted;
use crate::worker::{Slot, Worker};

/// Pause before a report is repeated, and the longest one: an owner that reads its instance again is ready within the first,
/// and a change of owners within a few of the last.
const REPORT_AGAIN: Duration = Duration::from_millis(20);
const REPORT_AGAIN_MAX: Duration = Duration::from_secs(1);
/// Tries to tell the owner that an activity has begun, within a second. An owner that heard of none gives it up at its deadline,
/// and its worker learns that by asking.
const ASK_TRIES: u32 = 5;
/// An item scheduled this recently begins without asking the owner: if its instance has ended since, the item begins only a
/// moment too late. Less than a second, because the worker knows the store's clock with some delay.
const FRESH: Duration = Duration::from_millis(500);
/// How long an owner's answer is valid: nothing begins later than a second after its instance has ended.
const SURE: Duration = Duration::from_millis(900);
/// Most checks that the answer is still valid. If answers take longer than that each time, the item begins anyway.
const SURE_TRIES: usize = 3;
/// An item gives up its slot when its owner does not answer for this long: a hand-over takes less, an outage more.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// How long it then waits: less than a lease, after which there is a new owner.
const STAND_BACK: Duration = Duration::from_secs(3);
/// Every broker accepts results up to this many bytes, so that most are sent without a look at its limit.
const TRAVELS_ALWAYS: usize = 4 << 10;
/// How long a stopping worker tries to store a result that no owner has taken: part of the time that leaving may take.
const SPILL_MAX: Duration = Duration::from_millis(1_500);

/// What one attempt occupies of its worker.
pub(crate) struct Admission {
    /// Held until the code has ended.
    pub(crate) slot: Slot,
    /// The permit to have an unsettled result.
    pub(crate) report: OwnedSemaphorePermit,
    pub(crate) session: Option<Arc<SessionUse>>,
}

/// What is known of an item when it is received.
struct Received {
    queued_ms: u64,
    redelivered: bool,
    cancelled: CancellationToken,
}

/// Runs an attempt, then settles the item and every copy of it delivered meanwhile.
pub(crate) async fn run(worker: Arc<Worker>, delivery: Delivery, cancelled: CancellationToken, admission: Admission) {
    let Delivery { item, queued_ms, redelivered, settle } = delivery;
    let activity = item.activity();
    let attempt = pin!(attempt(&worker, item, Received { queued_ms, redelivered, cancelled }, admission));
    let decision = match AssertUnwindSafe(attempt).catch_unwind().await {
        Ok(decision) => decision,
        Err(panic) => {
            // Panics of user code are caught where it runs, so this is our bug. Settle all the same: if the item stayed in
            // `held`, every later delivery would count as a copy and never run here.
            let reason = text_of(panic.as_ref());
            tracing::error!(target: crate::telemetry::logging::RUNTIME, instance = %activity.key.instance, reason, "an attempt panicked outside of user code; the activity is tried again");
            tokio::time::sleep(REPORT_AGAIN_MAX).await;
            Settle::Requeue
        }
    };
    // Removed before settling: an item that is requeued and comes straight back must begin, not count as a copy.
    let copies = worker.lock_held().remove(&activity).unwrap_or_default();
    for settle in copies.into_iter().chain([settle]) {
        settle(decision.clone());
    }
}

async fn attempt(
    worker: &Arc<Worker>,
    mut item: Arc<ActivityItem>,
    Received { queued_ms, redelivered, cancelled }: Received,
    Admission { slot, report, session }: Admission,
) -> Settle {
    let activity = item.activity();
    let heartbeat = match prepare(worker, &mut item, redelivered, &cancelled, session.as_deref()).await {
        Ok(heartbeat) => heartbeat,
        Err(instead) => return instead,
    };
    crate::telemetry::metrics::begun(&item, queued_ms, redelivered);
    Counters::count(&worker.counters.taken);
    let started = Instant::now();
    if let Some(running) = worker.lock_running().get_mut(&activity) {
        running.begun = Some(started);
    }
    let result = match worker.activities.resolve_handler(&item.name) {
        None => {
            drop(slot);
            tracing::warn!(target: crate::telemetry::logging::RUNTIME, activity = %item.name, worker = %worker.id, "activity is not registered");
            ReportResult::Unregistered { activity: item.name.clone() }
        }
        Some((_, handler)) => {
            if item.timeouts.get_schedule_to_start().is_some() {
                worker.surroundings.spawn(tell_begun(Arc::clone(worker), activity.clone()));
            }
            let call = Call { handler, cancelled, heartbeat, slot, session: session.clone() };
            let Executed { outcome, heartbeat } = execute(worker, &item, call).await;
            crate::telemetry::metrics::ran(&item, started.elapsed());
            worker.counters.ran(&outcome);
            let ran_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let worker = worker.id.as_str().to_owned();
            let run = AttemptInfo { worker, attempt: item.attempt, queued_ms, ran_ms, heartbeat };
            ReportResult::Done { outcome, run }
        }
    };
    let reporting = worker.reporting.begin();
    // If this worker's shutdown cut the attempt short, its error is no result: the activity runs again elsewhere.
    let cut_short = worker.stopped.is_cancelled() && matches!(&result, ReportResult::Done { outcome: Err(_), .. });
    let settled = !cut_short && deliver_report(worker, &item, result).await;
    // Released only now: the next holder of the session would be told that the item is still wanted.
    drop(session);
    drop((report, reporting));
    if settled { Settle::Ack } else { Settle::Requeue }
}

/// Checks that the item is wanted, its session is held here and the worker was not told to stop, and reads its input and last
/// heartbeat; otherwise returns how to settle the item.
async fn prepare(
    worker: &Arc<Worker>,
    item: &mut Arc<ActivityItem>,
    redelivered: bool,
    cancelled: &CancellationToken,
    session: Option<&SessionUse>,
) -> Result<Heartbeat, Settle> {
    // How long no question is needed. A redelivered item always needs one: its first run may have ended and been committed.
    let fresh_until = if redelivered { Millis(0) } else { item.scheduled_at.plus(FRESH) };
    let fresh_for = Duration::from_millis(fresh_until.0.saturating_sub(worker.store.now().0)).min(FRESH);
    let mut sure_until = Instant::now() + fresh_for;
    if fresh_for.is_zero() {
        sure_until = Box::pin(make_sure(worker, item, cancelled)).await?;
    }
    if let Some(session) = session {
        match session.claim().await {
            Claim::Mine => {}
            Claim::Other(owner) => return Err(Settle::Forward(owner)),
            Claim::Unknown => {
                tokio::time::sleep(REPORT_AGAIN).await;
                return Err(Settle::Requeue);
            }
        }
    }
    read_input(worker, item).await?;
    let heartbeat = Heartbeat::begin(Arc::clone(&worker.store), Arc::clone(&worker.options), item, redelivered).await;
    // The answer may have expired meanwhile, if the store was away.
    for _ in 0..SURE_TRIES {
        if Instant::now() < sure_until {
            break;
        }
        sure_until = Box::pin(make_sure(worker, item, cancelled)).await?;
    }
    match (worker.draining.is_cancelled(), cancelled.is_cancelled()) {
        (true, _) => Err(Settle::Requeue),
        (false, true) => Err(Settle::Ack),
        (false, false) => Ok(heartbeat),
    }
}

/// Asks the owner whether the item is wanted; returns until when that is certain. Without an answer nothing begins, since nobody
/// would take its result either.
async fn make_sure(
    worker: &Arc<Worker>,
    item: &ActivityItem,
    cancelled: &CancellationToken,
) -> Result<Instant, Settle> {
    let since = Instant::now();
    let mut pause = REPORT_AGAIN;
    loop {
        // The answer is valid from when it was asked for, because the owner may have given it at any moment since.
        let asked = Instant::now();
        let wanted = tokio::select! {
            biased;
            () = cancelled.cancelled() => return Err(Settle::Ack),
            () = worker.draining.cancelled() => return Err(Settle::Requeue),
            wanted = worker.is_wanted(Question { activity: item.activity(), begun: false }) => wanted,
            () = tokio::time::sleep(ANSWER_PATIENCE) => Wanted::Silence,
        };
        match wanted {
            Wanted::Yes => return Ok(asked + SURE),
            Wanted::No => return Err(Settle::Ack),
            Wanted::Unsure if since.elapsed() < ANSWER_PATIENCE => tokio::time::sleep(pause).await,
            Wanted::Unsure | Wanted::Silence => return Err(Settle::Later(STAND_BACK)),
        }
        pause *= 2;
    }
}

/// Tells the owner, in time for its deadline, that an activity has begun.
async fn tell_begun(worker: Arc<Worker>, activity: ActivityRef) {
    let mut pause = REPORT_AGAIN;
    for _ in 0..ASK_TRIES {
        let known = worker.is_wanted(Question { activity: activity.clone(), begun: true }).await;
        if matches!(known, Wanted::Yes | Wanted::No) {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REPORT_AGAIN_MAX);
    }
}

async fn read_input(worker: &Arc<Worker>, item: &mut Arc<ActivityItem>) -> Result<(), Settle> {
    if !item.input_stored {
        return Ok(());
    }
    let key = &item.key;
    match worker.store.history(&key.instance, key.execution, Some(key.event)).await.map(|mut found| found.pop()) {
        Ok(Some(HistoryEvent { kind: EventKind::ActivityScheduled { input, .. }, .. })) => {
            Arc::make_mut(item).input = input;
            Ok(())
        }
        // Deleted since: nobody waits for the result.
        Ok(_) => Err(Settle::Ack),
        Err(error) => {
            tracing::warn!(target: crate::telemetry::logging::RUNTIME, activity = %item.name, %error, "input was not read, trying again");
            tokio::time::sleep(REPORT_AGAIN_MAX).await;
            Err(Settle::Requeue)
        }
    }
}

/// Whether a result is too large for a message, by what the server takes at the moment.
fn is_large(worker: &Worker, result: &ReportResult) -> bool {
    let bytes = match result {
        ReportResult::Done { outcome: Ok(output), .. } => output.len(),
        ReportResult::Done { outcome: Err(details), .. } => outlast_core::encode(details).len(),
        ReportResult::Unregistered { .. } => 0,
    };
    bytes > TRAVELS_ALWAYS && bytes > worker.broker.state().payload_bytes_max
}

/// Writes a result to the instance's inbox, where the owner finds it; tries until the store takes it. `false` if there is no
/// outcome.
async fn spill(worker: &Arc<Worker>, item: &ActivityItem, result: &ReportResult) -> bool {
    let ReportResult::Done { outcome, run } = result else { return false };
    let (execution, event, token) = (item.key.execution, item.key.event, item.token);
    let (outcome, run) = (outcome.clone(), Some(run.clone()));
    let kind = MessageKind::ActivityDone { execution, event, token, outcome, run };
    let message = Message { id: result_id(&item.key, item.token), kind };
    // The token names the life that it is for, however often it is sent.
    let options = SendOptions::first_try(usize::MAX);
    loop {
        match worker.store.send(&item.key.instance, message.clone(), options).await {
            Ok(_) => return true,
            // Deleted since: nobody waits for the result.
            Err(outlast_storage::Error::InstanceNotFound(_)) => return true,
            Err(error) => {
                tracing::warn!(target: crate::telemetry::logging::RUNTIME, activity = %item.name, %error, "result was not stored, trying again");
            }
        }
        tokio::time::sleep(REPORT_AGAIN_MAX).await;
    }
}

/// Repeats the report until the instance's owner, whoever that is by then, has settled it. If this process ends first, the result
/// goes to the inbox, so that the activity does not run again; `false` if the store does not take it either.
async fn deliver_report(worker: &Arc<Worker>, item: &ActivityItem, result: ReportResult) -> bool {
    tokio::select! {
        biased;
        settled = settle_report(worker, item, &result) => return settled,
        () = worker.stopped.cancelled() => {}
    }
    worker.troubles.results.end(&item.key);
    // The interrupted report may have arrived; both have the same message id, so the result is applied once.
    let kept = tokio::time::timeout(SPILL_MAX, spill(worker, item, &result)).await;
    kept.unwrap_or(false)
}

async fn settle_report(worker: &Arc<Worker>, item: &ActivityItem, result: &ReportResult) -> bool {
    let mut shard = ShardId::of(&item.key.instance, worker.shards);
    let mut pause = REPORT_AGAIN;
    loop {
        if is_large(worker, result) {
            return spill(worker, item, result).await;
        }
        let report = Report { key: item.key.clone(), token: item.token, result: result.clone() };
        match worker.broker.request(shard, ShardRequest::Report(Box::new(report))).await.first().copied() {
            Some(ReportReply::Settled(_)) => {
                worker.troubles.results.end(&item.key);
                return true;
            }
            Some(ReportReply::Moved(to)) if to != shard => {
                shard = to;
                continue;
            }
            Some(ReportReply::Moved(_) | ReportReply::TryAgain) | None => {}
        }
        let untaken = Untaken { activity: item.name.clone(), orchestration: item.orchestration.clone() };
        worker.troubles.results.note(item.key.clone(), untaken);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REPORT_AGAIN_MAX);
    }
}
