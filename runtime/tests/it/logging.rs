//! What log lines say, and that a replay says nothing twice.

use std::io::Write;
use std::sync::{Arc, Mutex};

use outlast::{ActivityContext, ObservabilityConfig, OrchestrationContext, StartOptions};

use crate::world::{World, activities, orchestration};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn with(&self, text: &str) -> Vec<String> {
        let bytes = self.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

/// Hears what the default filter lets through. A test's runtime has one thread, so everything of it logs here.
fn listen() -> (Lines, tracing::subscriber::DefaultGuard) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter(ObservabilityConfig::default().default_filter())
        .with_writer(move || writer.clone())
        .finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

#[tokio::test]
async fn lines_say_whose_they_are_and_are_written_once() {
    let (lines, _listening) = listen();
    let work = |ctx: ActivityContext, _: String| async move {
        ctx.trace_info("from the activity");
        Ok(ctx.traceparent().unwrap_or("none").to_owned())
    };
    let code = |ctx: OrchestrationContext, _: String| async move {
        ctx.trace_info("from the orchestration");
        ctx.trace_debug("below the filter");
        ctx.schedule_activity("Work", "").await?;
        ctx.schedule_activity("Work", "").await
    };
    let mut options = crate::world::options();
    // Nothing stays warm, so every turn replays.
    options.limits.warm_instances_max = 1;
    options.passivate_after = std::time::Duration::ZERO;
    let world = World::start_with(activities().register("Work", work), orchestration("Say", code), options).await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let start = StartOptions {
        instance: "i".to_owned(),
        orchestration: "Say".to_owned(),
        traceparent: Some(traceparent.to_owned()),
        ..StartOptions::default()
    };
    world.client.start_with(start).await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), traceparent);
    let said = lines.with("from the orchestration");
    assert_eq!(said.len(), 1, "{said:?}");
    for field in ["outlast::orchestration", "instance=i", "execution=1", "orchestration=Say"] {
        assert!(said[0].contains(field), "{field} is missing in {}", said[0]);
    }
    let said = lines.with("from the activity");
    assert_eq!(said.len(), 2, "{said:?}");
    for field in
        ["outlast::activity", "instance=i", "execution=1", "orchestration=Say", "activity=Work", "worker=", "attempt=1"]
    {
        assert!(said[0].contains(field), "{field} is missing in {}", said[0]);
    }
    assert!(lines.with("below the filter").is_empty());
}

#[tokio::test]
async fn the_last_words_of_an_execution_are_heard() {
    let (lines, _listening) = listen();
    let code = |ctx: OrchestrationContext, input: String| async move {
        if input == "first" {
            ctx.trace_info("words before the next execution");
            return ctx.continue_as_new("fail").await;
        }
        ctx.schedule_activity("Echo", "").await?;
        ctx.trace_error(format!("words before the end: {input}"));
        if input == "fail" { Err(input) } else { Ok(input) }
    };
    let world = World::start(activities(), orchestration("Last", code)).await;
    world.run("Last", "first").await.unwrap_err();
    world.client.start_orchestration("ok", "Last", "ok").await.unwrap();
    world.outcome("ok").await.unwrap();
    for words in ["words before the next execution", "words before the end: fail", "words before the end: ok"] {
        assert_eq!(lines.with(words).len(), 1, "{words}");
    }
}

/// Lines about what is not registered that many instances of an orchestration leave at once.
async fn lines_of(lines: &Lines, world: &World, orchestration: &str) -> Vec<String> {
    for n in 0..20 {
        world.client.start_orchestration(format!("{orchestration}-{n}"), orchestration, "").await.unwrap();
    }
    let begun = std::time::Instant::now();
    while lines.with("has registered").is_empty() && begun.elapsed() < crate::world::SOON {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // The others have come to the same by then, and are tried again after a second.
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    lines.with("has registered")
}

#[tokio::test]
async fn a_mistyped_activity_is_one_line_at_once_however_many_wait_for_it() {
    let (lines, _listening) = listen();
    let code = |ctx: OrchestrationContext, _: String| async move { ctx.schedule_activity("Ehco", "").await };
    let options = outlast::RuntimeOptions::default();
    let world = World::start_with(activities(), orchestration("Typo", code), options).await;
    let said = lines_of(&lines, &world, "Typo").await;
    assert_eq!(said.len(), 1, "{said:?}");
    for part in ["WARN", "no worker has registered activity Ehco", "check its name", "instance=Typo-"] {
        assert!(said[0].contains(part), "{part} is missing in {}", said[0]);
    }
}

#[tokio::test]
async fn a_mistyped_orchestration_is_one_line_at_once_however_often_it_is_started() {
    let (lines, _listening) = listen();
    let code = |_: OrchestrationContext, input: String| async move { Ok(input) };
    let options = outlast::RuntimeOptions::default();
    let world = World::start_with(activities(), orchestration("Order", code), options).await;
    let said = lines_of(&lines, &world, "Oder").await;
    assert_eq!(said.len(), 1, "{said:?}");
    for part in ["WARN", "no node has registered orchestration Oder", "check its name", "instance=Oder-"] {
        assert!(said[0].contains(part), "{part} is missing in {}", said[0]);
    }
}

#[tokio::test]
async fn a_failed_orchestration_is_one_line_and_a_cancelled_one_is_no_error() {
    let (lines, _listening) = listen();
    let registry = orchestration("Bad", |ctx: OrchestrationContext, _: String| async move {
        ctx.schedule_activity("Fail", "out of stock").await
    });
    let registry = registry
        .register("Wait", |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("go").await) });
    let world = World::start(activities(), registry).await;
    world.run("Bad", "").await.unwrap_err();
    world.client.start_orchestration("w", "Wait", "").await.unwrap();
    world.events("w", 2).await;
    world.client.cancel_instance("w", "not needed").await.unwrap();
    world.outcome("w").await.unwrap_err();
    let failed = lines.with("out of stock");
    assert_eq!(failed.len(), 1, "{failed:?}");
    for part in ["ERROR", "orchestration failed: out of stock", "instance=Bad-1", "orchestration=Bad"] {
        assert!(failed[0].contains(part), "{part} is missing in {}", failed[0]);
    }
    let cancelled = lines.with("canceled: not needed");
    assert_eq!(cancelled.len(), 1, "{cancelled:?}");
    assert!(cancelled[0].contains("INFO"), "{}", cancelled[0]);
}

#[tokio::test]
async fn an_id_that_is_started_again_with_another_input_is_a_line() {
    let (lines, _listening) = listen();
    let code = |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("go").await) };
    let world = World::start(activities(), orchestration("Wait", code)).await;
    for input in ["a", "a", "b"] {
        world.client.start_orchestration("i", "Wait", input).await.unwrap();
    }
    let said = lines.with("was started with another input");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("WARN") && said[0].contains("instance=i"), "{}", said[0]);
}
