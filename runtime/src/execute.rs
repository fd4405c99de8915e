//! Running user code: what it may do wrong, and how long it may take.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use outlast_core::{ActivityItem, ActivityOutcome, ActivityTimeouts, AppErrorKind, ErrorDetails};
use tokio::task::{AbortHandle, JoinError};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::ActivityContext;
use crate::activity::ActivityHandler;
use crate::heartbeat::Heartbeat;
use crate::worker::Worker;

/// What came of a run.
pub(crate) struct Executed {
    pub(crate) outcome: ActivityOutcome,
    /// A heartbeat of the activity may be stored.
    pub(crate) heartbeat: bool,
}

/// Runs user code. A panic is an error, a missed deadline and an abort after the grace period are too.
pub(crate) async fn execute(
    worker: &Arc<Worker>,
    item: &Arc<ActivityItem>,
    (handler, cancelled, redelivered): (ActivityHandler, CancellationToken, bool),
) -> Executed {
    let heartbeat = Arc::new(Heartbeat::begin(worker, item, redelivered).await);
    let shared = (worker.client.clone(), Arc::clone(&heartbeat));
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
    let attempt = crate::spans::attempt(item, &worker.id);
    let input = item.input.clone();
    // The closure itself may panic before it returns its future, so it is called inside the task.
    let task = tokio::spawn(async move { handler(context, input).await }.instrument(attempt.clone()).instrument(span));
    let abort = AbortOnDrop(task.abort_handle());
    let grace = worker.options.activity_cancellation_grace_period;
    let timeouts = item.timeouts.or(worker.activities.timeouts(&item.name));
    let ended = CancellationToken::new();
    let keeping = heartbeat.keep(worker, item, ended.clone());
    let running = async {
        let _ended = ended.drop_guard();
        tokio::select! {
        result = task => match result {
            Ok(Ok(output)) => check_size(worker, output),
            Ok(Err(error)) => Err(application(error)),
            Err(join) => Err(application(panic_message(join))),
        },
        missed = deadline(timeouts, &heartbeat) => {
            // Nobody waits for it any more; it gets the grace period to notice.
            cancelled.cancel();
            tokio::spawn(async move {
                tokio::time::sleep(grace).await;
                drop(abort);
            });
            Err(application(missed))
        }
        () = overdue(cancelled.clone(), grace) => {
            drop(abort);
            Err(application("activity was cancelled and aborted after its grace period".to_owned()))
        }
        }
    };
    let (outcome, ()) = tokio::join!(running, keeping);
    crate::spans::attempt_ended(&attempt, &outcome);
    if outcome.is_err() {
        heartbeat.save(worker, item).await;
    }
    Executed { outcome, heartbeat: heartbeat.may_be_stored(item, redelivered) }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ends when a deadline is missed, with what to say about it.
async fn deadline(timeouts: ActivityTimeouts, heartbeat: &Heartbeat) -> String {
    let close = async {
        match timeouts.get_start_to_close() {
            Some(limit) => {
                tokio::time::sleep(limit).await;
                format!("timeout: the activity has not ended within {limit:?} (start_to_close)")
            }
            None => std::future::pending().await,
        }
    };
    let silent = async {
        match timeouts.get_heartbeat() {
            Some(limit) => {
                heartbeat.silent_for(limit).await;
                format!("timeout: the activity has sent no heartbeat for {limit:?}")
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        missed = close => missed,
        missed = silent => missed,
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
