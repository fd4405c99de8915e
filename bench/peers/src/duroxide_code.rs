//! The workloads on the duroxide crate, whatever its store.
//!
//! Its clients poll for their result, which costs throughput, so each instance gives its output to the waiting client by a
//! hint inside the process, before its end is committed. Only W4 waits as its users would.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use duroxide::providers::Provider;
use duroxide::runtime::{OrchestrationStatus, Runtime, RuntimeOptions, registry::ActivityRegistry};
use duroxide::{ActivityContext, Client, OrchestrationContext, OrchestrationRegistry};
use tokio::sync::oneshot;

use crate::arguments::Arguments;
use crate::served::{Start, now_us, serve};
use crate::workload::{CHAIN, FAN_OUT, TIMER, Workload};

const PATIENCE: Duration = Duration::from_secs(600);

/// Told at the end of an instance, by its id.
#[derive(Clone, Default)]
struct Hints(Arc<Mutex<HashMap<String, oneshot::Sender<String>>>>);

impl Hints {
    fn expect(&self, id: &str) -> oneshot::Receiver<String> {
        let (hint, told) = oneshot::channel();
        self.0.lock().expect("nobody panics with it").insert(id.to_owned(), hint);
        told
    }

    fn tell(&self, ctx: &OrchestrationContext, output: String) -> Result<String, String> {
        if let Some(hint) = self.0.lock().expect("nobody panics with it").remove(&ctx.instance_id()) {
            let _gone = hint.send(output.clone());
        }
        Ok(output)
    }
}

pub(crate) async fn drive(
    store: Arc<dyn Provider>,
    options: RuntimeOptions,
    arguments: Arguments,
) -> anyhow::Result<()> {
    let hints = Hints::default();
    let _runtime = Runtime::start_with_options(store.clone(), activities(), orchestrations(&hints), options).await;
    let client = Client::new(store);
    let hinted = arguments.workload != Workload::W4;
    serve(arguments.workload, arguments.size(), async |start: Start| {
        let told = hints.expect(&start.id);
        client.start_orchestration(&start.id, start.orchestration, start.input).await?;
        if hinted {
            return told.await.context("an instance ended without a hint");
        }
        match client.wait_for_orchestration(&start.id, PATIENCE).await? {
            OrchestrationStatus::Completed { output, .. } => Ok(output),
            other => anyhow::bail!("{} ended as {other:?}", start.id),
        }
    })
    .await
}

fn activities() -> ActivityRegistry {
    ActivityRegistry::builder()
        .register("Echo", |_: ActivityContext, input: String| async move { Ok(input) })
        .register("Mark", |_: ActivityContext, _: String| async move { Ok(now_us().to_string()) })
        .build()
}

fn orchestrations(hints: &Hints) -> OrchestrationRegistry {
    let asked: Mutex<HashMap<String, u64>> = Mutex::default();
    let [hints1, hints2, hints3, hints5, hints6] = std::array::from_fn(|_| hints.clone());
    OrchestrationRegistry::builder()
        .register("w1", move |ctx: OrchestrationContext, input: String| {
            let hints = hints1.clone();
            async move { hints.tell(&ctx, ctx.schedule_activity("Echo", input).await?) }
        })
        .register("w2", move |ctx: OrchestrationContext, mut input: String| {
            let hints = hints2.clone();
            async move {
                for _ in 0..CHAIN {
                    input = ctx.schedule_activity("Echo", input).await?;
                }
                hints.tell(&ctx, input)
            }
        })
        .register("w3", move |ctx: OrchestrationContext, _: String| {
            let hints = hints3.clone();
            async move {
                let all = ctx.join((0..FAN_OUT).map(|n| ctx.schedule_activity("Echo", n.to_string())).collect()).await;
                hints.tell(&ctx, all.len().to_string())
            }
        })
        .register("w5", move |ctx: OrchestrationContext, steps: String| {
            let hints = hints5.clone();
            async move {
                let mut marks = Vec::new();
                for step in 0..steps.parse::<usize>().map_err(|error| error.to_string())? {
                    marks.push(ctx.schedule_activity("Mark", step.to_string()).await?);
                }
                hints.tell(&ctx, marks.join(","))
            }
        })
        .register("w6", move |ctx: OrchestrationContext, _: String| {
            let hints = hints6.clone();
            let mut asked = asked.lock().expect("nobody panics with it");
            let asked = *asked.entry(ctx.instance_id()).or_insert_with(now_us);
            async move {
                ctx.schedule_timer(TIMER).await;
                hints.tell(&ctx, asked.to_string())
            }
        })
        .build()
}
