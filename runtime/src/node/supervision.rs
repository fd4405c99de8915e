//! Supervises the long-lived tasks of a node: one that panics, or ends without being asked to, is logged and restarted.
//!
//! A task holds nothing that the store does not have, so restarting it is always right; its successor begins by looking for what
//! was in hand. A node whose tasks fail again and again gives its shards to other nodes (`membership::leave_when_failing`). Each
//! future runs in a loop instead of under ractor's supervision, because two of the tasks have threads of their own, and all keep
//! their input (a mailbox, a queue of turns) across restarts; neither fits an actor.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::node::node_task::NodeTask;
use crate::telemetry::logging::RUNTIME;

/// Pause before the first restart; it doubles. Short, since nobody does the task's work meanwhile.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest pause before a restart: a task that fails for a reason outside is back a second after that is mended.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long a failure counts: ten failures with their pauses fit in easily, and one of each hour never adds up.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Failures within that time after which the node is not ready: one or two may be an unlucky input, three are a pattern.
const UNREADY_AFTER: usize = 3;
/// Failures within that time after which the node gives up its shards. With the pauses, they take over five seconds.
const GIVEN_UP_AFTER: usize = 10;

/// What has failed lately, and what follows from it.
pub(crate) struct Supervisor {
    failures: Mutex<BTreeMap<NodeTask, Failures>>,
    /// Ends all tasks of the node.
    stopping: CancellationToken,
    /// The node's tasks have failed too often: its shards are better off elsewhere.
    failing: CancellationToken,
    /// Its executor has ended without a shutdown.
    abandoned: CancellationToken,
}

#[derive(Default)]
struct Failures {
    recent: VecDeque<Instant>,
    reason: String,
}

/// A task that has failed within the last minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failing {
    pub(crate) task: NodeTask,
    /// How often.
    pub(crate) count: usize,
    /// Since when.
    pub(crate) since: Instant,
    /// Why it ended last.
    pub(crate) reason: String,
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = if self.count == 1 { "once".to_owned() } else { format!("{} times", self.count) };
        write!(
            f,
            "the task \"{}\" ended unasked {times} in a minute and was started anew: {}",
            self.task.name(),
            self.reason
        )
    }
}

impl Supervisor {
    /// For a node whose tasks are told to end by `stopping`.
    pub(crate) fn new(stopping: CancellationToken) -> Arc<Self> {
        let (failing, abandoned) = (CancellationToken::new(), CancellationToken::new());
        Arc::new(Self { failures: Mutex::default(), stopping, failing, abandoned })
    }

    /// Runs the future that `start` makes, and restarts it after each panic or return, until `asked` is cancelled. A task that
    /// has an end cancels `asked` itself.
    pub(crate) fn keep<F>(
        self: Arc<Self>,
        task: NodeTask,
        asked: CancellationToken,
        mut start: impl FnMut() -> F,
    ) -> impl Future<Output = ()>
    where
        F: Future<Output = ()>,
    {
        // Made before the first poll: an executor may end before it polls a task.
        let presence = Presence { supervisor: Arc::clone(&self), task, asked: asked.clone() };
        async move {
            let _presence = presence;
            loop {
                // `start` is called inside, because it may panic too.
                let ended = AssertUnwindSafe(async { start().await }).catch_unwind().await;
                let reason = match ended {
                    _ if asked.is_cancelled() => return,
                    Ok(()) => "it returned".to_owned(),
                    Err(panic) => format!("it panicked: {}", text_of(panic.as_ref())),
                };
                let pause = self.failed(task, reason);
                tokio::select! {
                    biased;
                    () = asked.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }

    /// Records a failure; returns how long to wait before the restart.
    fn failed(&self, task: NodeTask, reason: String) -> Duration {
        let count = {
            let mut failures = self.lock();
            let failures = failures.entry(task).or_default();
            failures.recent.push_back(Instant::now());
            failures.forget_old();
            failures.reason.clone_from(&reason);
            failures.recent.len()
        };
        crate::telemetry::metrics::task_failed(task);
        tracing::error!(target: RUNTIME, task = task.name(), reason, count, "a task of this node ended unasked, it is started anew");
        if count >= GIVEN_UP_AFTER && task.serves_shards() {
            self.failing.cancel();
        }
        let doublings = u32::try_from(count).unwrap_or(u32::MAX).saturating_sub(1).min(16);
        PAUSE.saturating_mul(1 << doublings).min(PAUSE_MAX)
    }

    /// The tasks that have failed lately.
    pub(crate) fn failing_tasks(&self) -> Vec<Failing> {
        let mut failures = self.lock();
        failures.retain(|_, failures| failures.forget_old());
        let failing = |(task, failures): (&NodeTask, &Failures)| {
            let since = *failures.recent.front()?;
            Some(Failing { task: *task, count: failures.recent.len(), since, reason: failures.reason.clone() })
        };
        failures.iter().filter_map(failing).collect()
    }

    /// A task that fails so often that the node cannot be given work.
    pub(crate) fn unready_task(&self) -> Option<NodeTask> {
        self.failing_tasks().into_iter().find(|failing| failing.count >= UNREADY_AFTER).map(|failing| failing.task)
    }

    /// A task that restarts do not help: the process should be replaced.
    #[cfg(feature = "telemetry")]
    pub(crate) fn lost_task(&self) -> Option<NodeTask> {
        self.failing_tasks().into_iter().find(|failing| failing.count >= GIVEN_UP_AFTER).map(|failing| failing.task)
    }

    /// Returns when the node's shards are better off elsewhere.
    pub(crate) async fn given_up(&self) {
        self.failing.cancelled().await;
    }

    /// Whether the executor has ended while tasks of the node ran.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.is_cancelled()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeTask, Failures>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Failures {
    /// Drops old failures; `true` if any are left.
    fn forget_old(&mut self) -> bool {
        while self.recent.len() > GIVEN_UP_AFTER || self.recent.front().is_some_and(|at| at.elapsed() >= REMEMBERED) {
            self.recent.pop_front();
        }
        !self.recent.is_empty()
    }
}

/// Notices a task that is dropped before it was asked to end: its executor has ended, and the renewal thread would hold the
/// shards for nobody.
struct Presence {
    supervisor: Arc<Supervisor>,
    task: NodeTask,
    asked: CancellationToken,
}

impl Drop for Presence {
    fn drop(&mut self) {
        if self.asked.is_cancelled() || self.supervisor.stopping.is_cancelled() {
            return;
        }
        tracing::error!(target: RUNTIME, task = self.task.name(), "the executor of this node has ended without a shutdown, the node leaves");
        // In this order: `stopping` wakes the renewal, which then looks at `abandoned`.
        self.supervisor.abandoned.cancel();
        self.supervisor.stopping.cancel();
    }
}

/// The message of a panic.
pub(crate) fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::Supervisor;
    use crate::node::node_task::NodeTask;

    /// A busy machine may end an executor before it has polled any task.
    #[test]
    fn a_task_that_is_dropped_before_its_first_poll_is_missed() {
        let supervisor = Supervisor::new(CancellationToken::new());
        let stopping = supervisor.stopping.clone();
        drop(supervisor.clone().keep(NodeTask::Shares, stopping.clone(), || std::future::ready(())));
        assert!(supervisor.is_abandoned() && stopping.is_cancelled());
    }
}
