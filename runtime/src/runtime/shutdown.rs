//! Shutdown: activities get some time to end, then everything stops, and store and broker are told.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use futures::future::select;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::Runtime;
use crate::telemetry::logging::RUNTIME;

/// How long `shutdown(None)` waits for running activities: quick ones end, and nobody has to wait for a stopping process.
const SHUTDOWN_DEFAULT: Duration = Duration::from_secs(1);
/// How long user code may take to end after its abort. What blocks its thread for longer is named in the log.
const CODE_ENDS_MAX: Duration = Duration::from_millis(500);
/// How long leaving may take beyond the time for running activities: with it, a default shutdown ends within the ten seconds
/// that container platforms allow.
const LEAVE_MAX: Duration = Duration::from_millis(2_500);
/// Part of it that is reserved for telling store and broker: two trips, also to a slow server.
const GOODBYE: Duration = Duration::from_millis(500);
/// How long after its timeout a caller outside the executor gives up on a shutdown: longer than any shutdown takes.
const OUTSIDE_MAX: Duration = Duration::from_secs(10);

/// A shutdown under way.
#[derive(Default)]
pub(crate) struct Leaving {
    begun: Mutex<Option<Begun>>,
}

struct Begun {
    /// When activities must have ended; `None` is never.
    by: watch::Sender<Option<Instant>>,
    /// Closed when the shutdown is done.
    ended: watch::Receiver<()>,
}

impl Runtime {
    /// Stops: takes no new work and hands the shards to other nodes at once. Running activities get up to `timeout_ms` (default
    /// 1,000), then they are told to stop and aborted, and their sessions are freed. Returns as soon as all is quiet, at the
    /// latest 2.5 s after that time, whichever servers are away. Code that blocks its thread cannot be aborted and is named in
    /// the log. Activities that did not finish run again elsewhere or after the next start.
    ///
    /// If it is called again, the shortest time counts for all calls. Dropping a call does not cancel the shutdown.
    pub async fn shutdown(self: Arc<Self>, timeout_ms: Option<u64>) {
        let timeout = timeout_ms.map_or(SHUTDOWN_DEFAULT, Duration::from_millis);
        let mut ended = self.begin_to_leave(timeout);
        // Nothing is sent; it closes when all is done.
        let all_done = Box::pin(async move { while ended.changed().await.is_ok() {} });
        if Handle::try_current().is_ok() {
            all_done.await;
        } else {
            // Perhaps nobody drives the executor; then the shutdown would never end.
            let (rings, _alarm) = alarm(timeout.saturating_add(OUTSIDE_MAX));
            let _whichever = select(all_done, rings).await;
        }
        if !self.node.owner.stopping.is_cancelled() {
            tracing::error!(target: RUNTIME, "the executor of this runtime has ended or does not run, so it could not be shut down in order; its node leaves the store when the runtime is dropped: shut down inside of the executor");
            self.stop();
        }
    }

    fn begin_to_leave(self: &Arc<Self>, timeout: Duration) -> watch::Receiver<()> {
        let wished = Instant::now().checked_add(timeout);
        // Held to the end of the function, so that only one of several calls begins the shutdown.
        let mut leaving = self.leaving.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(begun) = &*leaving {
            let sooner = |by: &Option<Instant>| wished.is_some_and(|wished| by.is_none_or(|by| wished < by));
            begun.by.send_if_modified(|by| {
                let hurries = sooner(by);
                if hurries {
                    *by = wished;
                }
                hurries
            });
            return begun.ended.clone();
        }
        self.worker.draining.cancel();
        self.worker.attempts.close();
        let ((by, deadline), (ends, ended)) = (watch::channel(wished), watch::channel(()));
        let runtime = Arc::clone(self);
        // On the runtime's executor: the caller may be on another one, or give up.
        let _on_its_executor = self.executor.enter();
        self.worker.surroundings.spawn(async move {
            leave(&runtime, deadline).await;
            drop(ends);
        });
        *leaving = Some(Begun { by, ended: ended.clone() });
        ended
    }
}

async fn leave(runtime: &Arc<Runtime>, deadline: watch::Receiver<Option<Instant>>) {
    let (node, worker) = (&runtime.node, &runtime.worker);
    let quiet = async {
        crate::shards::membership::hand_over(&node.owner, &runtime.messages).await;
        worker.attempts.wait().await;
        while !node.is_quiet() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        biased;
        () = quiet => {}
        () = passed(deadline) => {
            tracing::warn!(target: RUNTIME, "activities still run at shutdown; they will run again");
        }
    }
    runtime.stop();
    // One limit for everything that follows, whichever servers are away.
    let end = Instant::now() + LEAVE_MAX;
    let ended = async { tokio::join!(runtime.tasks.ended(), worker.code_ended(CODE_ENDS_MAX)) };
    if tokio::time::timeout_at(end - GOODBYE, ended).await.is_err() {
        tracing::warn!(target: RUNTIME, "some tasks have not ended and are aborted; the store has what they were doing");
        runtime.tasks.abort();
    }
    // It goes on after this wait: a store that comes back soon still hears it.
    if let Some(farewell) = runtime.presence.leave()
        && tokio::time::timeout_at(end, farewell).await.is_err()
    {
        tracing::warn!(target: RUNTIME, "the servers do not answer; others take the shards when the lease has ended");
    }
}

/// Returns when a deadline has passed, which may be brought forward.
async fn passed(mut moment: watch::Receiver<Option<Instant>>) {
    loop {
        let by = *moment.borrow_and_update();
        let sleep = async {
            match by {
                Some(by) => tokio::time::sleep_until(by).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = sleep => return,
            Ok(()) = moment.changed() => {}
        }
    }
}

/// Rings after a while, without an executor. Its thread ends when the second value is dropped.
fn alarm(after: Duration) -> (oneshot::Receiver<()>, mpsc::Sender<()>) {
    let (ring, rings) = oneshot::channel();
    let (stop, stopped) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        // The waiting caller may be gone.
        if let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(after) {
            let _unheard = ring.send(());
        }
    });
    (rings, stop)
}
