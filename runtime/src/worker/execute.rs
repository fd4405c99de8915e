//! Running user code, and what it may do wrong.

use std::sync::Arc;
use std::time::Duration;

use outlast_core::{ActivityItem, ActivityOutcome, AppErrorKind, ErrorDetails};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::ActivityContext;
use crate::code::activity::ActivityHandler;
use crate::code::heartbeat::Heartbeat;
use crate::telemetry::logging::RUNTIME;
use crate::worker::deadlines::{deadline, overdue, patience};
use crate::worker::sessions::SessionUse;
use crate::worker::{Slot, Worker};

/// User code that still runs this long after its abort is blocking its thread.
const ABORT_MAX: Duration = Duration::from_secs(1);

/// The result of a run.
pub(crate) struct Executed {
    pub(crate) outcome: ActivityOutcome,
    /// A heartbeat of the activity may be stored.
    pub(crate) heartbeat: bool,
}

/// Code to run, and what it holds until it has ended.
pub(crate) struct Call {
    pub(crate) handler: ActivityHandler,
    pub(crate) cancelled: CancellationToken,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) slot: Slot,
    pub(crate) session: Option<Arc<SessionUse>>,
}

/// Runs user code. Panics, missed deadlines and aborts after the grace period are errors. After the latter two the code may still
/// run when this returns; slot and session stay taken until it ends.
pub(crate) async fn execute(
    worker: &Arc<Worker>,
    item: &Arc<ActivityItem>,
    Call { handler, cancelled, heartbeat, slot, session }: Call,
) -> Executed {
    let heartbeat = Arc::new(heartbeat);
    let (client, id) = (worker.client.clone(), worker.id.as_str().to_owned());
    let context = ActivityContext::new(Arc::clone(item), id, cancelled.clone(), client, Arc::clone(&heartbeat));
    let span = tracing::info_span!(
        target: crate::telemetry::logging::ACTIVITY,
        "activity",
        instance = %item.key.instance,
        execution = item.key.execution.0,
        orchestration = %item.orchestration,
        activity = %item.name,
        worker = %worker.id,
        attempt = item.attempt,
    );
    let attempt = crate::telemetry::spans::attempt(item, &worker.id);
    let input = item.input.clone();
    // The closure itself may panic before it returns its future, so it is called inside the task.
    let call = async move {
        // Dropped with the code itself, however it ends.
        let _taken = (slot, session);
        handler(context, input).await
    };
    let mut code = Code(worker.surroundings.spawn(call.instrument(attempt.clone()).instrument(span)));
    let grace = worker.options.activity_cancellation_grace_period;
    let timeouts = item.timeouts.or(worker.activities.timeouts(&item.name));
    let running = async {
        tokio::select! {
            biased;
            result = &mut code.0 => match result {
                Ok(Ok(output)) => check_size(worker, output),
                Ok(Err(error)) => Err(application(worker.options.limits.cut_error(error))),
                Err(join) => Err(application(worker.options.limits.cut_error(panic_message(join)))),
            },
            missed = deadline(timeouts, &heartbeat) => {
                // Nobody waits for the code any more; it gets the grace period to notice.
                worker.cancel(&item.activity());
                cancelled.cancel();
                worker.surroundings.spawn(see_out(code, Arc::clone(worker), Arc::clone(item), grace));
                Err(application(missed))
            }
            () = overdue(worker, &cancelled, grace) => {
                worker.surroundings.spawn(see_out(code, Arc::clone(worker), Arc::clone(item), Duration::ZERO));
                Err(application("activity was cancelled and aborted after its grace period".to_owned()))
            }
        }
    };
    let outcome = heartbeat.keep_while(item, running).await;
    crate::telemetry::spans::attempt_ended(&attempt, &outcome);
    if outcome.is_err() {
        heartbeat.save(item).await;
    }
    Executed { outcome, heartbeat: heartbeat.may_be_stored() }
}

/// The task of user code.
struct Code(JoinHandle<Result<String, String>>);

impl Drop for Code {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits for code whose outcome is already decided, and aborts it after the grace period. Code that blocks its thread runs on
/// regardless: its slot stays taken, and a warning is logged.
async fn see_out(mut code: Code, worker: Arc<Worker>, item: Arc<ActivityItem>, grace: Duration) {
    tokio::select! {
        biased;
        _ended = &mut code.0 => return,
        () = patience(&worker, grace) => code.0.abort(),
    }
    if tokio::time::timeout(ABORT_MAX, &mut code.0).await.is_err() {
        let (activity, instance) = (&item.name, &item.key.instance);
        tracing::warn!(target: RUNTIME, %activity, %instance, "an activity blocks its thread: nobody waits for it, and its slot is taken until it ends");
        // Its result, or that it was aborted, is of no interest.
        let _ended = (&mut code.0).await;
    }
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
    let text = outlast_core::panic_text(panic);
    format!("activity panicked: {}", text.unwrap_or_else(|| "without a message".to_owned()))
}
