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
