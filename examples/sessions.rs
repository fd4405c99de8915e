//! Sessions: activities of one session run on one worker, which may keep the session's state in memory.
//!
//! Two runtimes hold an LRU cache of two sessions each. A hit spares the work of building the state; on a miss (first
//! use, pushed out, or the session has moved) it is made again from what is durable. Half way one runtime stops, and the
//! other one goes on with its sessions: a cache is never the only place. Run it with `cargo run --example sessions`.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::try_join_all;
use lru::LruCache;
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus,
    RuntimeOptions,
};
use serde::{Deserialize, Serialize};

const PATIENCE: Duration = Duration::from_secs(10);
const NOTEBOOKS: [&str; 4] = ["ada", "bob", "eve", "kim"];

/// What a session keeps in memory: here some lines, elsewhere a model, a connection or a parsed document.
type Cache = Arc<Mutex<LruCache<String, Vec<String>>>>;

#[derive(Serialize, Deserialize)]
struct Line {
    text: String,
    /// How many lines came before: tells whether a cached state is the current one.
    before: usize,
}

async fn note(ctx: ActivityContext, line: Line, cache: Cache) -> Result<String, String> {
    let session = ctx.session_id().ok_or("this activity needs a session")?.to_owned();
    let cached = cache.lock().unwrap_or_else(PoisonError::into_inner).get(&session).cloned();
    // An attempt whose result was lost has left a newer state behind, a session that was elsewhere an older one.
    let (how, mut lines) = match cached.filter(|lines| lines.len() == line.before) {
        Some(lines) => ("hit ", lines),
        None => ("miss", hydrate(&ctx).await?),
    };
    lines.push(line.text);
    cache.lock().unwrap_or_else(PoisonError::into_inner).put(session, lines.clone());
    let worker = ctx.worker_id().split('-').next().unwrap_or_default().to_owned();
    Ok(format!("{how} on {worker}: {}", lines.join(" ")))
}

/// Builds the state from the key-value state of the instance, which was committed before this activity was handed out.
async fn hydrate(ctx: &ActivityContext) -> Result<Vec<String>, String> {
    tokio::time::sleep(Duration::from_millis(50)).await; // It costs something, a hit costs nothing.
    let stored = ctx.get_client().get_kv_value_typed(ctx.instance_id(), "lines").await;
    Ok(stored.map_err(|error| error.to_string())?.unwrap_or_default())
}

async fn notebook(ctx: OrchestrationContext, _: String) -> Result<String, String> {
    let mut lines = Vec::new();
    loop {
        let line = Line { text: ctx.dequeue_event("lines").await, before: lines.len() };
        let report: String = ctx.schedule_activity_on_session_typed("Note", &line, ctx.instance_id()).await?;
        lines.push(line.text);
        ctx.set_kv_value_typed("lines", &lines);
        ctx.set_custom_status(report);
    }
}

async fn start(provider: Arc<SqliteProvider>, name: &str) -> anyhow::Result<Arc<Runtime>> {
    let room = NonZeroUsize::new(2).context("a cache needs room")?;
    let cache: Cache = Arc::new(Mutex::new(LruCache::new(room)));
    let activities = ActivityRegistry::builder()
        .register_typed("Note", move |ctx, line| note(ctx, line, Arc::clone(&cache)))
        .build();
    let orchestrations = OrchestrationRegistry::builder().register("Notebook", notebook).build();
    // One activity at a time: a session that is new while this worker is busy goes to the other one.
    let options =
        RuntimeOptions { worker_node_id: Some(name.to_owned()), worker_concurrency: 1, ..RuntimeOptions::default() };
    Ok(Runtime::try_start(provider, activities, orchestrations, options).await?)
}

/// Sends the word that follows the `seen` earlier ones, and returns what was noted.
async fn write(client: &Client, instance: &str, word: &str, seen: u64) -> anyhow::Result<String> {
    client.enqueue_event(instance, "lines", word).await?;
    match client.wait_for_status_change(instance, seen, Duration::from_secs(1), PATIENCE).await? {
        OrchestrationStatus::Running { custom_status: Some(report), .. } => Ok(format!("{instance} {report}")),
        other => bail!("{instance} does not go on: {other:?}"),
    }
}

/// Two words for one notebook after the other: the second always finds the state that the first has left.
async fn visit(client: &Client, words: [&str; 2], seen: u64) -> anyhow::Result<()> {
    for instance in NOTEBOOKS {
        for (word, seen) in words.into_iter().zip(seen..) {
            println!("{}", write(client, instance, word, seen).await?);
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let provider = Arc::new(SqliteProvider::new_in_memory().await?);
    let left = start(provider.clone(), "left").await?;
    let right = start(provider.clone(), "right").await?;
    let client = Client::new(provider);
    for instance in NOTEBOOKS {
        client.start_orchestration(instance, "Notebook", "").await?;
    }
    // All at once, so that both workers get some of the sessions.
    let opened = NOTEBOOKS.map(|instance| write(&client, instance, "one", 0));
    for report in try_join_all(opened).await? {
        println!("{report}");
    }
    visit(&client, ["two", "three"], 1).await?;
    left.shutdown(None).await;
    println!("-- left has stopped");
    visit(&client, ["four", "five"], 3).await?;
    right.shutdown(None).await;
    Ok(())
}
