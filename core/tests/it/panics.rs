//! Code that panics in every place where it is run, woken or dropped: its instance fails or ends, and the turn goes on.

use std::panic::panic_any;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use outlast_core::{AppErrorKind, ErrorDetails, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus};

use crate::harness::{Bench, start};

/// A value that panics when it is dropped, with itself again for `depth` times.
struct Grenade {
    depth: u32,
}

impl Drop for Grenade {
    fn drop(&mut self) {
        match self.depth {
            0 => panic!("dropped"),
            depth => panic_any(Grenade { depth: depth - 1 }),
        }
    }
}

fn job<F, Fut>(code: F) -> OrchestrationRegistry
where
    F: Fn(OrchestrationContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<String, String>> + Send + 'static,
{
    OrchestrationRegistry::builder().register("job", move |ctx: OrchestrationContext, _: String| code(ctx)).build()
}

/// The status after a first turn and a second, a second later.
fn outcome(registry: OrchestrationRegistry) -> OrchestrationStatus {
    let mut bench = Bench::new(registry);
    bench.send(start("job", ""));
    bench.now = bench.now.plus(Duration::from_secs(1));
    bench.turn(Vec::new());
    bench.state.to_status()
}

#[track_caller]
fn panicked(registry: OrchestrationRegistry) -> String {
    match outcome(registry) {
        OrchestrationStatus::Failed {
            details: ErrorDetails::Application { kind: AppErrorKind::Panicked, message, .. },
            ..
        } => message,
        other => panic!("expected a panic, got {other:?}"),
    }
}

#[test]
fn a_panic_whose_value_panics_when_it_is_dropped_is_a_panic() {
    for depth in [0, 1, 5] {
        let text = panicked(job(move |_| async move { panic_any(Grenade { depth }) }));
        assert_eq!(text, "panicked without a message");
        let late = job(move |ctx| async move {
            ctx.schedule_timer(Duration::from_secs(1)).await;
            panic_any(Grenade { depth })
        });
        assert_eq!(panicked(late), "panicked without a message");
    }
}

#[test]
fn a_panic_that_holds_durable_futures_and_its_context_is_a_panic() {
    struct Held(OrchestrationContext, #[expect(dead_code, reason = "only dropped")] Box<dyn std::any::Any + Send>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.trace_info("dropped");
            self.0.set_kv_value("k", "v");
        }
    }
    let code = job(|ctx| async move {
        let held = Box::new(ctx.schedule_activity("A", ""));
        panic_any(Held(ctx, held))
    });
    assert_eq!(panicked(code), "panicked without a message");
}

#[test]
fn values_that_panic_when_the_ended_code_is_dropped_change_nothing() {
    for depth in [0, 3] {
        let waits = job(move |ctx| async move {
            let _kept = Grenade { depth };
            ctx.continue_as_new("").await
        });
        let mut bench = Bench::new(waits);
        bench.send(start("job", ""));
        assert_eq!(bench.state.execution.0, 2);
        // A passivated instance is dropped while it waits.
        let waits = job(move |ctx| async move {
            let kept = Grenade { depth };
            ctx.schedule_wait("never").await;
            std::mem::forget(kept);
            Ok("went on".to_owned())
        });
        let mut bench = Bench::new(waits);
        bench.send(start("job", ""));
        bench.cold();
        bench.send(outlast_core::MessageKind::Raise { name: "never".to_owned(), data: String::new() });
        assert_eq!(bench.state.output.as_deref(), Some("went on"));
    }
}

#[test]
fn a_waker_of_the_code_that_panics_is_a_panic() {
    struct Bad;
    impl Wake for Bad {
        fn wake(self: Arc<Self>) {
            panic!("woken");
        }
    }
    let code = job(|ctx| async move {
        let mut timer = ctx.schedule_timer(Duration::from_secs(1));
        let waker = Waker::from(Arc::new(Bad));
        std::future::poll_fn(move |_| {
            let mut cx = std::task::Context::from_waker(&waker);
            Future::poll(std::pin::Pin::new(&mut timer), &mut cx)
        })
        .await;
        Ok(String::new())
    });
    assert_eq!(panicked(code), "woken");
}

#[test]
fn conversions_of_the_codes_own_types_may_panic_and_may_use_the_context() {
    struct Name(OrchestrationContext);
    impl From<Name> for String {
        fn from(name: Name) -> Self {
            name.0.instance_id()
        }
    }
    impl AsRef<str> for Name {
        fn as_ref(&self) -> &str {
            let _ = self.0.instance_id();
            "k"
        }
    }
    let code = job(|ctx| async move {
        ctx.trace_info(Name(ctx.clone()));
        let _ = ctx.get_kv_value(Name(ctx.clone()));
        ctx.set_custom_status(Name(ctx.clone()));
        Ok("converted".to_owned())
    });
    assert!(matches!(outcome(code), OrchestrationStatus::Completed { output, .. } if output == "converted"));
    struct Unwritable;
    impl serde::Serialize for Unwritable {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            panic_any(Grenade { depth: 1 })
        }
    }
    let code = job(|ctx| async move { ctx.schedule_activity_typed("A", &Unwritable).await });
    assert_eq!(panicked(code), "panicked without a message");
}
