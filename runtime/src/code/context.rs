//! What activity code can do and know.

use std::sync::Arc;

use outlast_client::Client;
use outlast_core::ActivityItem;
use tokio_util::sync::CancellationToken;

use crate::code::heartbeat::Heartbeat;
use crate::telemetry::logging::ACTIVITY;

/// What activity code works with. Clones are the same context.
#[derive(Clone)]
pub struct ActivityContext {
    inner: Arc<Inner>,
}

struct Inner {
    item: Arc<ActivityItem>,
    worker: String,
    cancelled: CancellationToken,
    client: Client,
    heartbeat: Arc<Heartbeat>,
}

macro_rules! log {
    ($self:ident, $level:ident, $message:ident) => {{
        let item = &$self.inner.item;
        tracing::$level!(
            target: ACTIVITY,
            instance = %item.key.instance,
            execution = item.key.execution.0,
            orchestration = %item.orchestration,
            activity = %item.name,
            worker = %$self.inner.worker,
            attempt = item.attempt,
            "{}",
            $message.into()
        );
    }};
}

impl ActivityContext {
    pub(crate) fn new(
        item: Arc<ActivityItem>,
        worker: String,
        cancelled: CancellationToken,
        client: Client,
        heartbeat: Arc<Heartbeat>,
    ) -> Self {
        Self { inner: Arc::new(Inner { item, worker, cancelled, client, heartbeat }) }
    }

    /// Whether the result is no longer wanted.
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancelled.is_cancelled()
    }

    /// Resolves when the result is no longer wanted.
    pub async fn cancelled(&self) {
        self.inner.cancelled.cancelled().await;
    }

    /// The token behind `is_cancelled`, for libraries that take one.
    pub fn cancellation_token(&self) -> CancellationToken {
        self.inner.cancelled.clone()
    }

    /// The session that this activity is bound to.
    pub fn session_id(&self) -> Option<&str> {
        self.inner.item.session_id.as_deref()
    }

    /// The tag by which it was routed.
    pub fn tag(&self) -> Option<&str> {
        self.inner.item.tag.as_deref()
    }

    /// The instance that scheduled it.
    pub fn instance_id(&self) -> &str {
        self.inner.item.key.instance.as_str()
    }

    /// The execution that scheduled it.
    pub fn execution_id(&self) -> u64 {
        self.inner.item.key.execution.0
    }

    /// The orchestration that scheduled it.
    pub fn orchestration_name(&self) -> &str {
        &self.inner.item.orchestration
    }

    /// The version of that orchestration.
    pub fn orchestration_version(&self) -> &str {
        &self.inner.item.version
    }

    /// The activity's own name.
    pub fn activity_name(&self) -> &str {
        &self.inner.item.name
    }

    /// The worker that runs it.
    pub fn worker_id(&self) -> &str {
        &self.inner.worker
    }

    /// Which attempt of its retry policy this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.inner.item.attempt
    }

    /// A key that all attempts of this activity share, and no other activity.
    pub fn idempotency_key(&self) -> String {
        self.inner.item.idempotency_key()
    }

    /// Reports progress, and that the work goes on. The next attempt can read the details on any worker, even if this attempt
    /// failed or its worker died; they are stored at most once a second, cut to `Limits::heartbeat_bytes_max`.
    pub fn heartbeat(&self, details: impl Into<String>) {
        self.inner.heartbeat.beat(details.into());
    }

    /// The last details from this attempt, or else from the one before.
    pub fn last_heartbeat(&self) -> Option<String> {
        self.inner.heartbeat.details()
    }

    /// The W3C trace context of the instance, if it was started with one.
    pub fn traceparent(&self) -> Option<&str> {
        self.inner.item.traceparent.as_deref()
    }

    /// A client of the same provider.
    pub fn get_client(&self) -> Client {
        self.inner.client.clone()
    }

    /// Logs at info level.
    pub fn trace_info(&self, message: impl Into<String>) {
        log!(self, info, message);
    }

    /// Logs at warn level.
    pub fn trace_warn(&self, message: impl Into<String>) {
        log!(self, warn, message);
    }

    /// Logs at error level.
    pub fn trace_error(&self, message: impl Into<String>) {
        log!(self, error, message);
    }

    /// Logs at debug level.
    pub fn trace_debug(&self, message: impl Into<String>) {
        log!(self, debug, message);
    }
}
