//! How a runtime behaves; everything has a default.

use std::time::Duration;

use outlast_core::{Limits, RefusedOption, TagFilter, UnregisteredBackoffConfig};

use crate::ObservabilityConfig;

/// Settings of one runtime.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// No effect: nothing polls.
    #[deprecated(note = "no effect")]
    pub dispatcher_min_poll_interval: Duration,
    /// No effect: nothing polls.
    #[deprecated(note = "no effect")]
    pub dispatcher_long_poll_timeout: Duration,
    /// No effect: every instance is an actor of its own.
    #[deprecated(note = "no effect")]
    pub orchestration_concurrency: usize,
    /// Activities that run at once (default 2).
    pub worker_concurrency: usize,
    /// No effect: shards are leased, not instances.
    #[deprecated(note = "no effect")]
    pub orchestrator_lock_timeout: Duration,
    /// No effect: shards are leased, not instances.
    #[deprecated(note = "no effect")]
    pub orchestrator_lock_renewal_buffer: Duration,
    /// No effect: an item is held until its completion is committed.
    #[deprecated(note = "no effect")]
    pub worker_lock_timeout: Duration,
    /// No effect: an item is held until its completion is committed.
    #[deprecated(note = "no effect")]
    pub worker_lock_renewal_buffer: Duration,
    /// Tries of code that nobody has registered, before it is poison (default 10).
    pub max_attempts: u32,
    /// Delay between those tries (default 1 s, doubling, at most 60 s).
    pub unregistered_backoff: UnregisteredBackoffConfig,
    /// How long a cancelled activity may go on before it is aborted (default 30 s).
    pub activity_cancellation_grace_period: Duration,
    /// No effect: sessions live as long as their worker's lease.
    #[deprecated(note = "no effect")]
    pub session_lock_timeout: Duration,
    /// No effect: sessions live as long as their worker's lease.
    #[deprecated(note = "no effect")]
    pub session_lock_renewal_buffer: Duration,
    /// A session without work for this long is free for any worker (default 300 s).
    pub session_idle_timeout: Duration,
    /// How often idle sessions are looked for (default 300 s).
    pub session_cleanup_interval: Duration,
    /// Sessions that this runtime holds at once (default 10). A further one replaces the idle one that was used least recently;
    /// while all have work, it waits or goes elsewhere.
    pub max_sessions_per_runtime: usize,
    /// Prefix of the node's and worker's names, which are unique at every start.
    pub worker_node_id: Option<String>,
    /// Which activities this runtime takes (default: the untagged ones).
    pub worker_tag_filter: TagFilter,
    /// Logging.
    pub observability: ObservabilityConfig,
    /// Bounds on everything.
    pub limits: Limits,
    /// A warm instance without work for this long leaves memory (default 60 s).
    pub passivate_after: Duration,
    /// Whether errors about code that does not follow its history quote inputs and values. By default they give only their
    /// lengths and digests, because such errors are listed, logged and shown on dashboards.
    pub show_data_in_errors: bool,
}

impl RuntimeOptions {
    /// Refuses values that cannot work.
    #[expect(deprecated, reason = "knobs without effect stay accepted")]
    pub(crate) fn check(&self) -> Result<(), RefusedOption> {
        // Named one by one, so that a new option is not forgotten here.
        let Self {
            dispatcher_min_poll_interval: _,
            dispatcher_long_poll_timeout: _,
            orchestration_concurrency: _,
            // At 0 the runtime has no worker.
            worker_concurrency: _,
            orchestrator_lock_timeout: _,
            orchestrator_lock_renewal_buffer: _,
            worker_lock_timeout: _,
            worker_lock_renewal_buffer: _,
            // At 0 and at 1, unregistered code is poison at once.
            max_attempts: _,
            unregistered_backoff: _,
            activity_cancellation_grace_period: _,
            session_lock_timeout: _,
            session_lock_renewal_buffer: _,
            session_idle_timeout: _,
            session_cleanup_interval: _,
            max_sessions_per_runtime,
            worker_node_id: _,
            worker_tag_filter: _,
            observability: _,
            limits,
            passivate_after: _,
            show_data_in_errors: _,
        } = self;
        RefusedOption::if_zero("RuntimeOptions::max_sessions_per_runtime", max_sessions_per_runtime)?;
        limits.check()
    }
}

impl Default for RuntimeOptions {
    #[expect(deprecated, reason = "knobs without effect stay accepted")]
    fn default() -> Self {
        Self {
            dispatcher_min_poll_interval: Duration::from_millis(100),
            dispatcher_long_poll_timeout: Duration::from_secs(30),
            orchestration_concurrency: 2,
            worker_concurrency: 2,
            orchestrator_lock_timeout: Duration::from_secs(5),
            orchestrator_lock_renewal_buffer: Duration::from_secs(2),
            worker_lock_timeout: Duration::from_secs(30),
            worker_lock_renewal_buffer: Duration::from_secs(5),
            max_attempts: 10,
            unregistered_backoff: UnregisteredBackoffConfig::default(),
            activity_cancellation_grace_period: Duration::from_secs(30),
            session_lock_timeout: Duration::from_secs(30),
            session_lock_renewal_buffer: Duration::from_secs(5),
            session_idle_timeout: Duration::from_secs(300),
            session_cleanup_interval: Duration::from_secs(300),
            max_sessions_per_runtime: 10,
            worker_node_id: None,
            worker_tag_filter: TagFilter::default(),
            observability: ObservabilityConfig::default(),
            limits: Limits::default(),
            passivate_after: Duration::from_secs(60),
            show_data_in_errors: false,
        }
    }
}
