//! The code of the simulated nodes: an orchestration that does what its input says, and the activity that it uses.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use outlast::{
    ActivityContext, ActivityRegistry, BackoffStrategy, OrchestrationContext, OrchestrationRegistry, RetryPolicy,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::program::{ATTEMPTS_MAX, Ends, Program, Step, TAGS, Work};
use super::trace::Trace;
use crate::lock::locked;

/// The name of the only orchestration.
pub(super) const PROGRAM: &str = "Program";
/// The event that programs wait for, and the queue that they read.
pub(super) const EVENT: &str = "go";
pub(super) const QUEUE: &str = "queue";

/// The input of an execution.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) program: Program,
    /// Which life of the id it is.
    pub(super) life: u32,
    /// Executions before this one.
    pub(super) generation: u32,
    /// Messages that they have taken.
    pub(super) taken: u32,
}

/// The input of an activity.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    life: u32,
    work: Work,
    padding: String,
}

/// What really ran, whatever histories say.
#[derive(Default)]
pub(super) struct Ledger(Mutex<Vec<Ran>>);

/// One time that an activity ran.
#[derive(Clone, Debug)]
pub(super) struct Ran {
    pub(super) instance: String,
    pub(super) life: u32,
    pub(super) key: String,
    pub(super) begun: Instant,
}

impl Ledger {
    pub(super) fn runs(&self) -> Vec<Ran> {
        locked(&self.0).clone()
    }
}

pub(super) fn activities(ledger: &Arc<Ledger>, trace: &Arc<Trace>, process: u64) -> ActivityRegistry {
    let (ledger, trace) = (Arc::clone(ledger), Arc::clone(trace));
    let run = move |ctx: ActivityContext, input: String| {
        let (ledger, trace) = (Arc::clone(&ledger), Arc::clone(&trace));
        async move {
            let Task { life, work, .. } = serde_json::from_str(&input).map_err(|error| error.to_string())?;
            let (instance, key, begun) = (ctx.instance_id().to_owned(), ctx.idempotency_key(), Instant::now());
            trace.line(format_args!("p{process} runs {key} of life {life}, attempt {}", ctx.attempt()));
            let ran = Ran { instance, life, key, begun };
            locked(&ledger.0).push(ran);
            let slept = tokio::time::sleep(Duration::from_millis(work.takes_ms));
            tokio::select! {
                biased;
                () = ctx.cancelled() => {
                    trace.line(format_args!("p{process} is told to stop {}", ctx.idempotency_key()));
                    return Err("it was told to stop".to_owned());
                }
                () = slept => {}
            }
            match work.ends {
                Ends::Well => Ok("x".repeat(work.bytes)),
                Ends::WellAt(attempt) if ctx.attempt() >= attempt => Ok("x".repeat(work.bytes)),
                Ends::Badly | Ends::WellAt(_) => Err("it was to fail".to_owned()),
                Ends::Panics => std::panic::panic_any("it was to panic"),
            }
        }
    };
    ActivityRegistry::builder().register("Work", run).build()
}

pub(super) fn orchestrations() -> OrchestrationRegistry {
    OrchestrationRegistry::builder().register(PROGRAM, interpret).build()
}

async fn interpret(ctx: OrchestrationContext, input: String) -> Result<String, String> {
    let input: Input = serde_json::from_str(&input).map_err(|error| error.to_string())?;
    let mut run = Execution { ctx: ctx.clone(), life: input.life, taken: input.taken };
    let mut output = String::new();
    for (index, step) in input.program.steps.iter().enumerate() {
        output += &run.step(index, step).await;
    }
    if input.generation < input.program.again {
        let next = Input { generation: input.generation + 1, taken: run.taken, ..input };
        return ctx.continue_as_new(text(&next)).await;
    }
    if input.program.fails { Err("it was to fail".to_owned()) } else { Ok(output) }
}

struct Execution {
    ctx: OrchestrationContext,
    life: u32,
    taken: u32,
}

impl Execution {
    async fn step(&mut self, index: usize, step: &Step) -> String {
        match step {
            Step::Activity(work) => self.work(work).await,
            Step::Join(all) => futures::future::join_all(all.iter().map(|work| self.work(work))).await.concat(),
            Step::Timer(millis) => {
                self.ctx.schedule_timer(Duration::from_millis(*millis)).await;
                "slept;".to_owned()
            }
            Step::Race(work, millis) => {
                let mut timer = self.ctx.schedule_timer(Duration::from_millis(*millis));
                let mut work = std::pin::pin!(self.work(work).fuse());
                futures::select_biased! {
                    done = work => done,
                    () = (&mut timer).fuse() => "timer;".to_owned(),
                }
            }
            Step::Child(program) => match self.ctx.schedule_sub_orchestration(PROGRAM, self.child(program)).await {
                Ok(_) => "child;".to_owned(),
                Err(error) if error.contains("it was to fail") => "child failed;".to_owned(),
                Err(other) => format!("child: {other};"),
            },
            Step::DroppedChild(program, millis) => {
                let child = self.ctx.schedule_sub_orchestration(PROGRAM, self.child(program));
                if *millis > 0 {
                    self.ctx.schedule_timer(Duration::from_millis(*millis)).await;
                }
                drop(child);
                "dropped;".to_owned()
            }
            Step::Detached(program) => {
                let (instance, execution) = (self.ctx.instance_id(), self.ctx.execution_id());
                let id = format!("{}-{}-{execution}-{index}", instance.replace("::", "-"), self.life);
                self.ctx.schedule_orchestration(PROGRAM, id, self.child(program));
                "detached;".to_owned()
            }
            Step::Wait => match self.ctx.schedule_wait(EVENT).await {
                life if life == self.life.to_string() => "event;".to_owned(),
                life => format!("an event for life {life};"),
            },
            Step::Dequeue(count) => self.dequeue(*count).await,
            Step::Kv(value) => {
                self.ctx.set_kv_value("k", value.to_string());
                format!("kv {};", self.ctx.get_kv_value("k").unwrap_or_default())
            }
            Step::Status(value) => {
                self.ctx.set_custom_status(value.to_string());
                format!("status {};", self.ctx.get_custom_status().unwrap_or_default())
            }
        }
    }

    async fn dequeue(&mut self, count: u32) -> String {
        for _ in 0..count {
            let message = self.ctx.dequeue_event(QUEUE).await;
            if message != format!("{} {}", self.life, self.taken) {
                return format!("message {message:?} instead of {} of life {};", self.taken, self.life);
            }
            self.taken += 1;
        }
        format!("{count} messages;")
    }

    fn child(&self, program: &Program) -> String {
        text(&Input { program: program.clone(), life: self.life, generation: 0, taken: 0 })
    }

    async fn work(&self, work: &Work) -> String {
        let task = text(&Task { life: self.life, work: work.clone(), padding: "y".repeat(work.bytes) });
        let session = work.session.map(|session| format!("session {session}"));
        let ended = if let Ends::WellAt(_) = work.ends {
            let policy = RetryPolicy::new(ATTEMPTS_MAX)
                .with_backoff(BackoffStrategy::Fixed { delay: Duration::from_millis(200) });
            match session {
                Some(session) => self.ctx.schedule_activity_with_retry_on_session("Work", task, policy, session).await,
                None => self.ctx.schedule_activity_with_retry("Work", task, policy).await,
            }
        } else {
            let scheduled = match session {
                Some(session) => self.ctx.schedule_activity_on_session("Work", task, session),
                None => self.ctx.schedule_activity("Work", task),
            };
            match work.tag {
                Some(tag) => scheduled.with_tag(TAGS[usize::from(tag)]).await,
                None => scheduled.await,
            }
        };
        match ended {
            Ok(result) if result.len() == work.bytes => "done;".to_owned(),
            Ok(result) => format!("a result of {} bytes;", result.len()),
            Err(error) if work.ends == Ends::Badly && error.contains("it was to fail") => "failed;".to_owned(),
            Err(error) if work.ends == Ends::Panics && error.contains("it was to panic") => "panicked;".to_owned(),
            Err(other) => format!("{other};"),
        }
    }
}

pub(super) fn text<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data can be written")
}
