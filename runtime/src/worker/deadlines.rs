//! How long the code of an activity may take: its deadlines, and its grace period after a cancellation.

use std::time::Duration;

use outlast_core::ActivityTimeouts;
use tokio_util::sync::CancellationToken;

use crate::code::heartbeat::Heartbeat;
use crate::worker::Worker;

/// When the worker stops: how long user code has between being told and being aborted. Its last words, such as a flush, fit in.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Returns when code that was told to end has used up its grace period, which is short when the worker stops.
pub(crate) async fn patience(worker: &Worker, grace: Duration) {
    let stopped = async {
        worker.stopped.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        biased;
        () = tokio::time::sleep(grace) => {}
        () = stopped => {}
    }
}

/// Returns when a deadline is missed, with the error message.
pub(crate) async fn deadline(timeouts: ActivityTimeouts, heartbeat: &Heartbeat) -> String {
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
        biased;
        missed = close => missed,
        missed = silent => missed,
    }
}

/// Returns when a cancelled activity has used up its grace period.
pub(crate) async fn overdue(worker: &Worker, cancelled: &CancellationToken, grace: Duration) {
    cancelled.cancelled().await;
    patience(worker, grace).await;
}
