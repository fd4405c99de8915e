//! Exports traces and metrics of a process to a collector, and serves `/livez`, `/readyz` and `/metrics`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{KeyValue, global, metrics::MeterProvider};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, hyper::HyperClient};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::metrics::{Instrument, PeriodicReader, SdkMeterProvider, Stream};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use outlast_client::Surroundings;
use thiserror::Error;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::telemetry::logging::ACTIVITY;
use crate::{Client, ObservabilityConfig, Runtime};

/// Longest wait for the collector's answer, the default of the specification of OpenTelemetry.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the store's answer to a client that is asked whether it is ready: less than the timeout of usual probes.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// Label values that a metric tells apart. Users choose tags, so further values are counted together, under the label
/// `otel.metric.overflow`.
const LABEL_VALUES_MAX: usize = 200;
/// Tells processes of one service apart: without it, a collector sees their metrics as one series.
const PROCESS: &str = "service.instance.id";
/// The name under which spans and metrics are made.
const SCOPE: &str = "outlast";

/// Telemetry is installed once per process.
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// What is exported, and where to.
#[derive(Clone, Debug)]
pub struct TelemetryOptions {
    /// The resource's `service.name`; without it, that of `observability`.
    pub service_name: String,
    /// Other attributes of the resource, for instance `deployment.environment.name`. `service.instance.id` is random unless it is
    /// given here or in `OTEL_RESOURCE_ATTRIBUTES`.
    pub attributes: Vec<(String, String)>,
    /// The collector, for OTLP over HTTP without TLS: `http://127.0.0.1:4318`. `None` exports nothing, `/metrics` works.
    pub otlp_endpoint: Option<String>,
    /// How often metrics are exported to the collector (default 60 s; 0 takes `OTEL_METRIC_EXPORT_INTERVAL`, or else 60 s).
    pub metrics_every: Duration,
    /// Share of the traces begun here that are kept (default 1.0). From 1.0 up all are kept, for 0, less and NaN none. For traces
    /// begun elsewhere, that was decided there.
    pub sample_ratio: f64,
    /// Log lines. With `install_subscriber: false` the program adds [`Telemetry::layer`] to a subscriber of its own.
    pub observability: ObservabilityConfig,
}

impl Default for TelemetryOptions {
    fn default() -> Self {
        Self {
            service_name: SCOPE.to_owned(),
            attributes: Vec::new(),
            otlp_endpoint: None,
            metrics_every: Duration::from_secs(60),
            sample_ratio: 1.0,
            observability: ObservabilityConfig::default(),
        }
    }
}

/// Why telemetry does not work.
#[derive(Debug, Error)]
pub enum Error {
    /// [`Telemetry::install`] was called before.
    #[error("telemetry is installed already")]
    Installed,
    /// The program has a `tracing` subscriber.
    #[error("the program has a subscriber: set `install_subscriber` to false and add `Telemetry::layer` to it")]
    Subscriber,
    /// The collector's address cannot be used.
    #[error("the collector's address {0:?} is not like http://127.0.0.1:4318")]
    Endpoint(String),
    /// Exports need a tokio runtime.
    #[error("telemetry with a collector must be installed inside a tokio runtime")]
    Outside(#[from] tokio::runtime::TryCurrentError),
    /// An exporter could not be made.
    #[error("an exporter could not be made: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// What was recorded could not all be exported.
    #[error("telemetry was lost: {0}")]
    Export(#[from] OTelSdkError),
}

/// The installed telemetry of this process.
pub struct Telemetry {
    traces: SdkTracerProvider,
    metrics: SdkMeterProvider,
    registry: prometheus::Registry,
}

impl Telemetry {
    /// Sets up spans, metrics and log lines for the whole process. Call it once, inside the tokio runtime that lives longest:
    /// exports run there.
    pub fn install(options: TelemetryOptions) -> Result<Self, Error> {
        if INSTALLED.swap(true, Ordering::SeqCst) {
            return Err(Error::Installed);
        }
        Self::install_first(&options).inspect_err(|_| INSTALLED.store(false, Ordering::SeqCst))
    }

    fn install_first(options: &TelemetryOptions) -> Result<Self, Error> {
        let registry = prometheus::Registry::new();
        let (traces, metrics) = providers(options, registry.clone())?;
        let telemetry = Self { traces, metrics, registry };
        if options.observability.install_subscriber {
            let subscriber = tracing_subscriber::registry().with(options.observability.lines()).with(telemetry.layer());
            subscriber.try_init().map_err(|_| Error::Subscriber)?;
        }
        global::set_text_map_propagator(TraceContextPropagator::new());
        global::set_tracer_provider(telemetry.traces.clone());
        global::set_meter_provider(telemetry.metrics.clone());
        crate::telemetry::metrics::install(&telemetry.metrics.meter(SCOPE));
        Ok(telemetry)
    }

    /// Exports the spans of `tracing`: for a subscriber of the program's own.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let tracer: SdkTracer = self.traces.tracer(SCOPE);
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        let layer = layer.with_location(false).with_threads(false).with_tracked_inactivity(false);
        // ractor's own spans belong to no instance's trace; `ACTIVITY` spans are for log lines and have an exported twin.
        let targets = Targets::new().with_default(LevelFilter::INFO);
        layer.with_filter(targets.with_targets([("ractor", LevelFilter::OFF), (ACTIVITY, LevelFilter::OFF)]))
    }

    /// `/livez`, `/readyz` and `/metrics`. It does not keep the runtime alive.
    pub fn router(&self, runtime: &Arc<Runtime>) -> Router {
        health_router(runtime).merge(self.metrics_router())
    }

    /// The same for a process that is only a client: it is ready when the store answers.
    pub fn client_router(&self, client: &Client) -> Router {
        let ready = Router::new().route("/readyz", get(store_answers)).with_state(client.clone());
        ready.route("/livez", get(livez)).merge(self.metrics_router())
    }

    fn metrics_router(&self) -> Router {
        Router::new().route("/metrics", get(scrape)).with_state(self.registry.clone())
    }

    /// Exports what was recorded until now.
    pub async fn flush(&self) -> Result<(), Error> {
        let (traces, metrics) = (self.traces.clone(), self.metrics.clone());
        aside(move || traces.force_flush().and(metrics.force_flush())).await
    }

    /// Exports what was recorded and ends.
    pub async fn shutdown(self) -> Result<(), Error> {
        aside(move || self.traces.shutdown().and(self.metrics.shutdown())).await
    }
}

/// `/livez` answers 200 while the process is worth keeping, and names the tasks of the node that were restarted in the last
/// minute; 503 means that restarting a task does not help and the process should be replaced. `/readyz` answers 503 with the
/// reason while the node cannot be given work.
pub fn health_router(runtime: &Arc<Runtime>) -> Router {
    let routes = Router::new().route("/readyz", get(readyz)).route("/livez", get(node_lives));
    routes.with_state(Arc::downgrade(runtime))
}

async fn node_lives(State(runtime): State<Weak<Runtime>>) -> (StatusCode, String) {
    let Some(runtime) = runtime.upgrade() else { return (StatusCode::OK, livez().await.to_owned()) };
    let supervisor = runtime.supervisor();
    let status = if supervisor.lost_task().is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let failing = supervisor.failing_tasks();
    let lines = failing.iter().map(ToString::to_string);
    let lines: Vec<String> =
        std::iter::once(livez().await.to_owned()).filter(|_| status == StatusCode::OK).chain(lines).collect();
    (status, lines.join("\n"))
}

async fn livez() -> &'static str {
    "ok"
}

async fn readyz(State(runtime): State<Weak<Runtime>>) -> (StatusCode, String) {
    ready(runtime.upgrade().map_or(Err(crate::NotReady::Stopping), |runtime| runtime.readiness()))
}

async fn store_answers(State(client): State<Client>) -> (StatusCode, String) {
    // No instance has an empty id; the answer is that there is none.
    ready(match tokio::time::timeout(STORE_TIMEOUT, client.get_orchestration_status("")).await {
        Ok(answer) => answer.map(drop).map_err(|error| error.to_string()),
        Err(_) => Err("the store does not answer".to_owned()),
    })
}

fn ready<E: std::fmt::Display>(readiness: Result<(), E>) -> (StatusCode, String) {
    match readiness {
        Ok(()) => (StatusCode::OK, "ready".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason.to_string()),
    }
}

async fn scrape(State(registry): State<prometheus::Registry>) -> Response {
    match prometheus::TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn providers(
    options: &TelemetryOptions,
    registry: prometheus::Registry,
) -> Result<(SdkTracerProvider, SdkMeterProvider), Error> {
    let resource = resource(options);
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(options.sample_ratio)));
    let mut traces = SdkTracerProvider::builder().with_resource(resource.clone()).with_sampler(sampler);
    let prometheus = opentelemetry_prometheus::exporter().with_registry(registry).scope_info_enabled(false).build()?;
    let mut metrics = SdkMeterProvider::builder().with_resource(resource).with_reader(prometheus).with_view(bounded);
    if let Some(endpoint) = &options.otlp_endpoint {
        let base = endpoint.trim_end_matches('/');
        if base.strip_prefix("http://").is_none_or(str::is_empty) {
            return Err(Error::Endpoint(endpoint.clone()));
        }
        let client = Exports::here()?;
        let spans = SpanExporter::builder().with_http().with_http_client(client.clone());
        traces = traces.with_batch_exporter(spans.with_endpoint(format!("{base}/v1/traces")).build()?);
        let numbers = MetricExporter::builder().with_http().with_http_client(client);
        let numbers = numbers.with_endpoint(format!("{base}/v1/metrics")).build()?;
        metrics = metrics.with_reader(PeriodicReader::builder(numbers).with_interval(options.metrics_every).build());
    }
    Ok((traces.build(), metrics.build()))
}

/// The name set here, or else the one in the logging options.
fn service_name(options: &TelemetryOptions) -> String {
    let own = &options.service_name;
    if own == SCOPE { options.observability.service_name.clone() } else { own.clone() }
}

/// Later attributes win.
fn resource(options: &TelemetryOptions) -> Resource {
    let process = {
        let bits = || Surroundings::default().random_bits();
        format!("{:016x}{:016x}", bits(), bits())
    };
    let attributes = options.attributes.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    Resource::builder_empty()
        .with_attribute(KeyValue::new(PROCESS, process))
        .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())])
        .with_service_name(service_name(options))
        .with_attributes(options.observability.service_version.clone().map(|it| KeyValue::new("service.version", it)))
        .with_attributes(attributes)
        .build()
}

/// Bounds the series of each of our metrics.
fn bounded(instrument: &Instrument) -> Option<Stream> {
    if !instrument.name().starts_with("outlast.") {
        return None;
    }
    let stream = Stream::builder().with_cardinality_limit(LABEL_VALUES_MAX).build();
    Some(stream.expect("a limit above zero is a limit"))
}

/// The exporters' threads have no executor: requests run where telemetry was installed.
#[derive(Clone, Debug)]
struct Exports {
    client: HyperClient,
    runtime: tokio::runtime::Handle,
}

impl Exports {
    fn here() -> Result<Self, Error> {
        let client = HyperClient::with_default_connector(EXPORT_TIMEOUT, None);
        Ok(Self { client, runtime: tokio::runtime::Handle::try_current()? })
    }
}

#[async_trait]
impl HttpClient for Exports {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<opentelemetry_http::Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}

/// Waits for exports without holding up the executor that carries them.
async fn aside(work: impl FnOnce() -> OTelSdkResult + Send + 'static) -> Result<(), Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|stopped| Err(OTelSdkError::InternalFailure(stopped.to_string()))).map_err(Error::from)
}
