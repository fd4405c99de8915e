//! User code that panics, also with values that panic themselves.

use std::panic::panic_any;
use std::time::{Duration, Instant};

use outlast::{ActivityContext, AppErrorKind, ErrorDetails, OrchestrationContext, OrchestrationRegistry};

use crate::model::world::{World, activities};

/// Panics when it is dropped, and again with itself.
struct Grenade(u32);

impl Drop for Grenade {
    fn drop(&mut self) {
        match self.0 {
            0 => panic!("dropped"),
            left => panic_any(Grenade(left - 1)),
        }
    }
}

#[tokio::test]
async fn panics_with_values_that_panic_when_they_are_dropped_fail_as_panics_and_hold_nothing_up() {
    let registry = OrchestrationRegistry::builder()
        .register("Panics", |ctx: OrchestrationContext, input: String| async move {
            if input == "late" {
                ctx.schedule_activity("Echo", "").await?;
            }
            panic_any(Grenade(2))
        })
        .register(
            "Calls",
            |ctx: OrchestrationContext, name: String| async move { ctx.schedule_activity(name, "").await },
        );
    let with_bombs = activities()
        .register("Panics", |_: ActivityContext, _: String| async move { panic_any(Grenade(2)) })
        .register("PanicsAtOnce", |_: ActivityContext, _: String| -> std::future::Ready<Result<String, String>> {
            panic_any(Grenade(0))
        })
        .register("PanicsInDrop", |ctx: ActivityContext, _: String| {
            let kept = Grenade(1);
            async move {
                ctx.cancelled().await;
                drop(kept);
                Ok(String::new())
            }
        });
    let world = World::start(with_bombs, registry).await;
    for (id, input) in [("at-once", ""), ("late", "late")] {
        world.client.start_orchestration(id, "Panics", input).await.unwrap();
        let details = world.outcome(id).await.unwrap_err();
        assert!(matches!(details, ErrorDetails::Application { kind: AppErrorKind::Panicked, .. }), "{id}: {details:?}");
    }
    for name in ["Panics", "PanicsAtOnce"] {
        world.client.start_orchestration(name, "Calls", name).await.unwrap();
        let message = world.outcome(name).await.unwrap_err().display_message();
        assert!(message.contains("activity panicked"), "{name}: {message}");
    }
    world.client.start_orchestration("cancelled", "Calls", "PanicsInDrop").await.unwrap();
    world.events("cancelled", 2).await;
    world.client.cancel_instance("cancelled", "enough").await.unwrap();
    assert!(world.outcome("cancelled").await.is_err());
    let stopping = Instant::now();
    world.runtime.shutdown(Some(60_000)).await;
    assert!(stopping.elapsed() < Duration::from_secs(30), "nothing was waited for");
}
