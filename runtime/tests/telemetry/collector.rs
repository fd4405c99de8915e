//! Those who listen and ask: a collector of spans and metrics, a prober, a scraper.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

/// Longest wait of a test for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A span, and the process that it came from.
#[derive(Clone, Debug)]
pub(crate) struct Exported {
    pub(crate) service: String,
    pub(crate) process: String,
    pub(crate) span: Span,
}

/// What the collector has received.
#[derive(Default)]
pub(crate) struct Received {
    pub(crate) spans: Mutex<Vec<Exported>>,
    /// Names of metrics, each with the service that sent it.
    pub(crate) metrics: Mutex<BTreeSet<(String, String)>>,
}

/// Spans of one trace.
pub(crate) struct Trace(pub(crate) Vec<Exported>);

pub(crate) async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Its address, and what it receives.
pub(crate) async fn collector() -> (SocketAddr, Arc<Received>) {
    async fn spans(State(received): State<Arc<Received>>, body: Bytes) {
        for resource in ExportTraceServiceRequest::decode(body).unwrap().resource_spans {
            let (service, process) = sender(resource.resource);
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let exported = spans.map(|span| Exported { service: service.clone(), process: process.clone(), span });
            received.spans.lock().unwrap().extend(exported);
        }
    }
    async fn metrics(State(received): State<Arc<Received>>, body: Bytes) {
        for resource in ExportMetricsServiceRequest::decode(body).unwrap().resource_metrics {
            let (service, _) = sender(resource.resource);
            let metrics = resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
            received.metrics.lock().unwrap().extend(metrics.map(|metric| (service.clone(), metric.name)));
        }
    }
    let received = Arc::new(Received::default());
    let router = Router::new().route("/v1/traces", post(spans)).route("/v1/metrics", post(metrics));
    (serve(router.with_state(received.clone())).await, received)
}

fn sender(resource: Option<Resource>) -> (String, String) {
    let attributes = resource.unwrap().attributes;
    (text(&attributes, "service.name").unwrap(), text(&attributes, "service.instance.id").unwrap())
}

fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.clone()?.value? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{name} is {other:?}"),
    }
}

impl Exported {
    pub(crate) fn attribute(&self, name: &str) -> String {
        text(&self.span.attributes, name).unwrap_or_else(|| panic!("{} has no {name}", self.span.name))
    }
}

impl Trace {
    /// All spans whose names begin so.
    pub(crate) fn named(&self, name: &str) -> Vec<&Exported> {
        self.0.iter().filter(|exported| exported.span.name.starts_with(name)).collect()
    }

    /// Names of all spans, with how often each is there.
    pub(crate) fn names(&self) -> BTreeMap<&str, usize> {
        let mut names = BTreeMap::new();
        self.0.iter().for_each(|exported| *names.entry(&exported.span.name[..]).or_default() += 1);
        names
    }

    pub(crate) fn parent(&self, of: &Exported) -> &Exported {
        let parent = self.0.iter().find(|other| other.span.span_id == of.span.parent_span_id);
        parent.unwrap_or_else(|| panic!("{of:?} has no parent among {:?}", self.names()))
    }

    /// One trace, of a request that started one orchestration; every turn of that one has the start as its parent, every turn
    /// of a child a turn of its parent, every attempt a turn.
    pub(crate) fn check(&self, orchestration: &str) {
        let ids: BTreeSet<_> = self.0.iter().map(|exported| &exported.span.trace_id).collect();
        assert_eq!(ids.len(), 1, "{:#?}", self.0);
        let spans: BTreeSet<_> = self.0.iter().map(|exported| &exported.span.span_id).collect();
        assert_eq!(spans.len(), self.0.len(), "a span was exported twice");
        let (request, start) = (self.named("request"), self.named("start orchestration"));
        assert_eq!((request.len(), start.len()), (1, 1));
        assert_eq!(start[0].span.name, format!("start orchestration {orchestration}"));
        assert_eq!(self.parent(start[0]).span.name, "request");
        for turn in self.named("orchestration turn ") {
            let parent = self.parent(turn);
            if turn.attribute("outlast.orchestration") == orchestration {
                assert_eq!(parent.span.span_id, start[0].span.span_id);
            } else {
                assert_eq!(parent.attribute("outlast.orchestration"), orchestration);
                assert_ne!(parent.span.span_id, start[0].span.span_id);
            }
        }
        for attempt in self.named("activity ") {
            assert!(self.parent(attempt).span.name.starts_with("orchestration turn "), "{attempt:?}");
            assert_eq!(self.parent(attempt).attribute("outlast.instance"), attempt.attribute("outlast.instance"));
        }
    }

    /// Activities with the numbers of their attempts, sorted.
    pub(crate) fn attempts(&self) -> Vec<(String, String)> {
        let attempts = self.named("activity ");
        let mut attempts: Vec<_> = attempts
            .into_iter()
            .map(|attempt| (attempt.attribute("outlast.activity"), attempt.attribute("outlast.attempt")))
            .collect();
        attempts.sort();
        attempts
    }
}

/// Status code and body.
pub(crate) async fn get(address: SocketAddr, path: &'static str) -> (u16, String) {
    let ask = move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

/// What a scrape has brought.
#[derive(Debug, Default)]
pub(crate) struct Scrape {
    /// Values by name with labels.
    samples: BTreeMap<String, f64>,
    /// Counter, gauge or histogram, by name.
    pub(crate) kinds: BTreeMap<String, String>,
}

impl Scrape {
    pub(crate) async fn of(address: SocketAddr) -> Self {
        let (status, text) = get(address, "/metrics").await;
        assert_eq!(status, 200, "{text}");
        let mut scrape = Self::default();
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                scrape.kinds.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').unwrap();
                scrape.samples.insert(name.to_owned(), value.parse().unwrap());
            }
        }
        scrape
    }

    /// The value of a sample, by name with labels.
    pub(crate) fn value(&self, name: &str) -> f64 {
        self.get(name).unwrap_or_else(|| panic!("{name} is not among {:#?}", self.samples))
    }

    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.samples.get(name).copied()
    }
}

/// Waits until `done` finds what the test waits for, and returns it.
pub(crate) async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = done().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
