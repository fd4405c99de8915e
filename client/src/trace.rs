//! The trace that an instance belongs to: the caller's, or else one that begins with the start.
//!
//! Contexts are written and read by the process-wide propagator, which `outlast::telemetry` sets to W3C trace context.

use std::collections::HashMap;

use opentelemetry::global::BoxedSpan;
use opentelemetry::trace::{Span, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::StartOptions;

/// A context as W3C `traceparent`; `None` when it has no span, or the process no propagator.
pub fn traceparent(context: &Context) -> Option<String> {
    let mut carrier = HashMap::new();
    global::get_text_map_propagator(|propagator| propagator.inject_context(context, &mut carrier));
    carrier.remove("traceparent")
}

/// The span of a start, while it lasts.
pub(crate) struct StartSpan(Option<Context>);

impl StartSpan {
    /// Begins the span, and makes it the instance's parent unless the caller has named another.
    pub(crate) fn begin(start: &mut StartOptions) -> Self {
        if start.traceparent.is_some() {
            return Self(None);
        }
        let tracer = global::tracer("outlast");
        let span: BoxedSpan = tracer
            .span_builder(format!("start orchestration {}", start.orchestration))
            .with_kind(SpanKind::Producer)
            .with_attributes([
                KeyValue::new("outlast.instance", start.instance.clone()),
                KeyValue::new("outlast.orchestration", start.orchestration.clone()),
            ])
            .start_with_context(&tracer, &current());
        // Without a tracer, the span is invalid: the caller's context is used.
        let context = if span.span_context().is_valid() { Context::new().with_span(span) } else { current() };
        start.traceparent = traceparent(&context);
        Self(Some(context))
    }

    /// Ends the span.
    pub(crate) fn end<T, E: std::fmt::Display>(self, result: &Result<T, E>) {
        if let (Some(context), Err(error)) = (&self.0, result) {
            context.span().set_status(Status::error(error.to_string()));
        }
    }
}

/// The caller's context, as OpenTelemetry or `tracing` knows it.
fn current() -> Context {
    let context = Context::current();
    if context.span().span_context().is_valid() { context } else { tracing::Span::current().context() }
}
