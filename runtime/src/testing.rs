//! Tests of orchestrations: virtual time, and replay of exported histories.
//!
//! Time stands still unless a test moves it. A month of timers passes in milliseconds; activities run for real.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use outlast_broker::{Broker, ShardRequest};
use outlast_client::{Client, ClientError, Provider};
use outlast_core::{
    Event, Millis, OrchestrationRegistry, OrchestrationStatus, ShardId, UnregisteredBackoffConfig, check_replay,
};
use outlast_storage::{Store, VirtualClock};
use thiserror::Error;
use tokio::time::Instant;

use crate::providers::sqlite::SqliteProvider;
use crate::{ActivityRegistry, ErrorDetails, ReplayDifference, Runtime, RuntimeOptions, StartError};

/// 2026-01-01T00:00:00Z: a date on which nothing happens.
const EPOCH: Millis = Millis(1_767_225_600_000);
/// This many looks in a row must find nothing under way; work that is being handed over shows up by then.
const QUIET_LOOKS: u32 = 3;
const LOOK: Duration = Duration::from_millis(1);
/// Activities run in real time, and virtual time stands still meanwhile. One that runs this long with nothing else happening may
/// be waiting for virtual time.
const PATIENCE: Duration = Duration::from_secs(10);
/// Virtual time moves on when nothing happens for this long and all activities wait for a worker or were told to stop.
const UNSERVED_PATIENCE: Duration = Duration::from_secs(1);
/// Unregistered names are poison soon: a test does not wait for a deployment.
const UNREGISTERED: UnregisteredBackoffConfig =
    UnregisteredBackoffConfig { base_delay: Duration::from_millis(1), max_delay: Duration::from_millis(1) };

/// A runtime in memory whose time the test moves.
pub struct TestRuntime {
    runtime: Arc<Runtime>,
    client: Client,
    clock: Arc<VirtualClock>,
    store: Arc<dyn Store>,
    broker: Arc<dyn Broker>,
    outstanding: Arc<AtomicUsize>,
    patience: Duration,
}

/// Why an exported history could not be checked, or how it differs.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// Not the JSON of a list of events.
    #[error("the exported history is not readable: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// Today's code does something else.
    #[error("today's code does not follow the history: {0}")]
    Differs(#[from] ReplayDifference),
}

/// Replays a history that was exported from `read_execution_history` as JSON, and shows the first difference.
pub fn replay(orchestrations: &OrchestrationRegistry, history_json: &str) -> Result<(), ReplayError> {
    let events: Vec<Event> = serde_json::from_str(history_json)?;
    // As in a turn: awaits in the code must not yield because the calling task has used up its poll budget.
    let checked = tokio::task::coop::unconstrained(async { check_replay(orchestrations, &events) });
    Ok(checked.now_or_never().expect("nothing is awaited in it")?)
}

/// Runs one instance to its end in a fresh [`TestRuntime`], timers skipped.
///
/// # Panics
/// When the instance waits for something that nobody sends, or the runtime in memory cannot be started.
pub async fn run_once(
    activities: ActivityRegistry,
    orchestrations: OrchestrationRegistry,
    (orchestration, input): (&str, &str),
) -> Result<String, ErrorDetails> {
    let world = TestRuntime::start(activities, orchestrations).await.expect("a runtime in memory starts");
    let started = world.client.start_orchestration("test", orchestration, input).await;
    started.expect("the name and input are within the limits");
    let status = world.run_to_end("test").await.expect("a store in memory answers");
    world.shutdown().await;
    match status {
        OrchestrationStatus::Completed { output, .. } => Ok(output),
        OrchestrationStatus::Failed { details, .. } => Err(details),
        OrchestrationStatus::Running { .. } | OrchestrationStatus::NotFound => {
            panic!("{orchestration} waits for something that nobody sends")
        }
    }
}

impl TestRuntime {
    /// Starts with many worker slots, and with hardly any back-off for unregistered code.
    pub async fn start(
        activities: ActivityRegistry,
        orchestrations: OrchestrationRegistry,
    ) -> Result<Self, StartError> {
        let options =
            RuntimeOptions { worker_concurrency: 64, unregistered_backoff: UNREGISTERED, ..RuntimeOptions::default() };
        Self::start_with_options(activities, orchestrations, options).await
    }

    /// Starts with options.
    pub async fn start_with_options(
        activities: ActivityRegistry,
        orchestrations: OrchestrationRegistry,
        options: RuntimeOptions,
    ) -> Result<Self, StartError> {
        let clock = VirtualClock::starting_at(EPOCH);
        let provider = Arc::new(SqliteProvider::in_memory_with_clock(Arc::clone(&clock))?);
        let (store, broker, outstanding) = (provider.store(), provider.broker(), provider.outstanding());
        let client = Client::new(Arc::clone(&provider));
        let runtime = Runtime::try_start(provider, activities, orchestrations, options).await?;
        Ok(Self { runtime, client, clock, store, broker, outstanding, patience: PATIENCE })
    }

    /// How long, in real time, the virtual time waits for activities that run (default 10 s). A test whose activities end only
    /// when a virtual deadline has passed needs less, one with slow activities more.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// A client of this runtime. Its waits have real timeouts and do not move the time.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Time since the start of the test, by the virtual clock.
    pub fn elapsed(&self) -> Duration {
        Duration::from_millis(self.clock.now().0 - EPOCH.0)
    }

    /// Returns when no turn or activity runs and no message is on its way, or when patience runs out: after the time of
    /// [`TestRuntime::with_patience`] if activities still run, after a second if all of them wait for a worker or were told to
    /// stop. Virtual time stands still.
    pub async fn settle(&self) {
        let (mut quiet, mut seen, mut since) = (0, None, Instant::now());
        while quiet < QUIET_LOOKS {
            tokio::time::sleep(LOOK).await;
            self.messages_taken().await;
            let (outstanding, has_turns) =
                (self.outstanding.load(Ordering::Acquire), self.runtime.has_turns(self.clock.now()));
            quiet = if outstanding == 0 && !has_turns && self.runtime.is_quiet() { quiet + 1 } else { 0 };
            let now = (outstanding, self.runtime.metrics_snapshot());
            let is_served = has_turns || self.runtime.runs_wanted();
            if seen != Some(now) {
                (seen, since) = (Some(now), Instant::now());
            } else if since.elapsed() >= if is_served { self.patience } else { UNSERVED_PATIENCE } {
                return;
            }
        }
    }

    /// Returns when the owner of the shards has taken everything sent to it before: messages keep their order, and this one asks
    /// nothing.
    async fn messages_taken(&self) {
        let _answered = self.broker.request(ShardId(0), ShardRequest::Wanted(Vec::new())).await;
    }

    /// Moves the time on, stopping at every timer on the way.
    pub async fn advance(&self, by: Duration) -> Result<(), ClientError> {
        let target = self.clock.now().plus(by);
        self.settle().await;
        while let Some(due) = self.next_timer().await?.filter(|due| *due <= target) {
            self.clock.advance_to(due);
            self.settle().await;
        }
        self.clock.advance_to(target);
        self.settle().await;
        Ok(())
    }

    /// Runs until the instance has ended, skipping from timer to timer. Comes back as `Running` when no timer is left and
    /// the instance waits for something that nobody sends.
    pub async fn run_to_end(&self, instance: &str) -> Result<OrchestrationStatus, ClientError> {
        loop {
            self.settle().await;
            let status = self.client.get_orchestration_status(instance).await?;
            if status.is_terminal() {
                return Ok(status);
            }
            match self.next_timer().await? {
                Some(due) => self.clock.advance_to(due),
                None => return Ok(status),
            }
        }
    }

    /// Stops the runtime.
    pub async fn shutdown(self) {
        self.runtime.shutdown(Some(0)).await;
    }

    async fn next_timer(&self) -> Result<Option<Millis>, ClientError> {
        let shards: Vec<_> = (0..self.store.shards()).map(ShardId).collect();
        Ok(self.store.next_due(&shards, self.clock.now()).await?)
    }
}
