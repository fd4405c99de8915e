//! What a process reports about itself: log lines, and with the feature `telemetry` OpenTelemetry traces, metrics and health.
//!
//! Every instance is one trace, over all processes and executions: the start by a client, turns of the orchestration, attempts of
//! activities. It begins with the caller's current span, or with `StartOptions::traceparent`. Replays add no spans. `tracing`
//! spans inside activities, from level `INFO`, are part of it. An instance started by a process without telemetry, and without a
//! `traceparent`, has no trace.
//!
//! Metrics go to the same collector and to `/metrics`; `deploy/README.md` lists them. Install telemetry before the runtime is started:
//!
#![cfg_attr(feature = "telemetry", doc = "```no_run")]
#![cfg_attr(not(feature = "telemetry"), doc = "```ignore")]
//! use outlast::runtime::Runtime;
//! use outlast::telemetry::{Telemetry, TelemetryOptions};
//! # async fn serve(
//! #     provider: std::sync::Arc<outlast::providers::sqlite::SqliteProvider>,
//! #     activities: outlast::ActivityRegistry,
//! #     orchestrations: outlast::OrchestrationRegistry,
//! #     asked_to_stop: impl Future<Output = ()>,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let telemetry = Telemetry::install(TelemetryOptions {
//!     service_name: "render-farm".to_owned(),
//!     otlp_endpoint: Some("http://127.0.0.1:4318".to_owned()),
//!     ..TelemetryOptions::default()
//! })?;
//! let runtime = Runtime::start_with_store(provider, activities, orchestrations).await;
//!
//! // `/livez`, `/readyz` and `/metrics`, on a port that only probes and scrapers reach.
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:9090").await?;
//! let router = telemetry.router(&runtime);
//! let server = tokio::spawn(async move { axum::serve(listener, router).await });
//!
//! asked_to_stop.await;
//! runtime.shutdown(None).await;
//! server.abort();
//! telemetry.shutdown().await?;
//! # Ok(())
//! # }
//! ```

pub(crate) mod counters;
pub mod logging;
pub(crate) mod metrics;
pub(crate) mod spans;

#[cfg(feature = "telemetry")]
mod export;
#[cfg(feature = "telemetry")]
pub use export::*;
