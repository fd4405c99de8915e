//! The spans of an instance's trace. Without the feature `telemetry`, the calls do nothing.
//!
//! ```text
//! start orchestration Order      the client; its context is the start event's `traceparent`
//! └─ orchestration turn Order    a turn that goes to commit, an error if that fails; a replay makes none
//!    ├─ activity Charge          an attempt; its item carries the context of the turn that scheduled it
//!    └─ orchestration turn Ship  a child's; its start event carries the context of the turn that scheduled it
//! ```
//!
//! An item that is handed out again after its turn's process has ended carries the context of the start event. Attributes
//! are `outlast.*`. An instance that was started without a context has no spans.

#[cfg(feature = "telemetry")]
pub(crate) use self::on::*;

#[cfg(not(feature = "telemetry"))]
pub(crate) use self::off::*;

#[cfg(feature = "telemetry")]
mod on {
    use std::collections::HashMap;
    use std::time::SystemTime;

    use opentelemetry::trace::{Span, Status, TraceContextExt, Tracer};
    use opentelemetry::{Context, KeyValue, global};
    use outlast_client::trace::traceparent;
    use outlast_core::{ActivityItem, ActivityOutcome, Effect, EventKind, InstanceId, MessageKind, Turn, WorkerId};
    use outlast_storage::Loaded;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    use crate::telemetry::logging::TRACE;

    /// The trace that an instance belongs to.
    #[derive(Default)]
    pub(crate) struct InstanceTrace {
        parent: Option<Context>,
        begun: Option<SystemTime>,
    }

    impl InstanceTrace {
        /// The trace that the start event names, or the start message that is not applied yet.
        pub(crate) fn of(loaded: &Loaded) -> Self {
            let stored = match loaded.history.first().map(|event| &event.kind) {
                Some(EventKind::OrchestrationStarted { traceparent, .. }) => traceparent.as_deref(),
                Some(_) => None,
                None => loaded.inbox.iter().find_map(|incoming| match &incoming.message.kind {
                    MessageKind::Start(start) => start.traceparent.as_deref(),
                    _ => None,
                }),
            };
            Self { parent: stored.and_then(context), begun: None }
        }

        /// A turn begins; it has a span only if it goes to commit.
        pub(crate) fn turn_begins(&mut self) {
            self.begun = self.parent.is_some().then(SystemTime::now);
        }

        /// The turn goes to commit: begins its span, to which all it schedules belongs.
        pub(crate) fn turn(&self, instance: &InstanceId, turn: &mut Turn) -> TurnSpan {
            let (Some(parent), Some(begun)) = (&self.parent, self.begun) else { return TurnSpan(None) };
            let tracer = global::tracer("outlast");
            let span = tracer
                .span_builder(format!("orchestration turn {}", turn.state.orchestration))
                .with_start_time(begun)
                .with_attributes([
                    KeyValue::new("outlast.instance", instance.to_string()),
                    KeyValue::new("outlast.execution", i64::try_from(turn.expected.execution.0).unwrap_or(i64::MAX)),
                    KeyValue::new("outlast.orchestration", turn.state.orchestration.clone()),
                    KeyValue::new("outlast.events", i64::try_from(turn.events.len()).unwrap_or(i64::MAX)),
                ])
                .start_with_context(&tracer, parent);
            if !span.span_context().is_valid() {
                return TurnSpan(None);
            }
            let context = Context::new().with_span(span);
            let own = traceparent(&context);
            for effect in &mut turn.effects {
                if let Effect::Dispatch(item) = effect {
                    item.traceparent.clone_from(&own);
                }
            }
            for outbound in &mut turn.outbound {
                if let MessageKind::Start(start) = &mut outbound.message.kind {
                    start.traceparent.clone_from(&own);
                }
            }
            TurnSpan(Some(context))
        }
    }

    /// The span of a turn; it ends when this is dropped.
    pub(crate) struct TurnSpan(Option<Context>);

    impl TurnSpan {
        /// The turn is durable.
        pub(crate) fn committed(mut self) {
            self.0 = None;
        }
    }

    impl Drop for TurnSpan {
        fn drop(&mut self) {
            if let Some(context) = &self.0 {
                context.span().set_status(Status::error("not committed"));
            }
        }
    }

    /// The span of an attempt, parent of the spans that user code makes. Log lines have a span of their own.
    pub(crate) fn attempt(item: &ActivityItem, worker: &WorkerId) -> tracing::Span {
        let Some(parent) = item.traceparent.as_deref().and_then(context) else { return tracing::Span::none() };
        let span = tracing::info_span!(
            target: TRACE,
            "activity",
            otel.name = format!("activity {}", item.name),
            otel.kind = "consumer",
            outlast.instance = %item.key.instance,
            outlast.execution = item.key.execution.0,
            outlast.orchestration = %item.orchestration,
            outlast.activity = %item.name,
            outlast.tag = item.tag.as_deref(),
            outlast.worker = %worker,
            outlast.attempt = item.attempt,
        );
        // If no layer exports the span, it has no parent either.
        let _unexported = span.set_parent(parent);
        span
    }

    /// The attempt of this span has ended.
    pub(crate) fn attempt_ended(span: &tracing::Span, outcome: &ActivityOutcome) {
        if let Err(details) = outcome {
            span.set_status(Status::error(details.display_message()));
        }
    }

    /// A stored context; `None` when it is not valid.
    fn context(traceparent: &str) -> Option<Context> {
        let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
        let context =
            global::get_text_map_propagator(|propagator| propagator.extract_with_context(&Context::new(), &carrier));
        context.has_active_span().then_some(context)
    }
}

#[cfg(not(feature = "telemetry"))]
mod off {
    use outlast_core::{ActivityItem, ActivityOutcome, InstanceId, Turn, WorkerId};
    use outlast_storage::Loaded;

    #[derive(Default)]
    pub(crate) struct InstanceTrace(());

    impl InstanceTrace {
        pub(crate) fn of(_: &Loaded) -> Self {
            Self(())
        }

        pub(crate) fn turn_begins(&mut self) {}

        pub(crate) fn turn(&self, _: &InstanceId, _: &mut Turn) -> TurnSpan {
            TurnSpan
        }
    }

    pub(crate) struct TurnSpan;

    impl TurnSpan {
        pub(crate) fn committed(self) {}
    }

    pub(crate) fn attempt(_: &ActivityItem, _: &WorkerId) -> tracing::Span {
        tracing::Span::none()
    }

    pub(crate) fn attempt_ended(_: &tracing::Span, _: &ActivityOutcome) {}
}
