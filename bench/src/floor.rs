//! The servers of a cluster without an engine: publish, work, result, group commit of two rows. What could be reached at all.
//!
//! No replay, no leases, no deduplication, no client in another process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use async_nats::jetstream::{self, consumer, stream};
use futures::StreamExt;
use futures::future::try_join_all;
use sqlx::{Connection, Executor, PgConnection};
use tokio::sync::{mpsc, oneshot};

use crate::served::{Start, now_us, serve};
use crate::servers::{NAMESPACE, NATS_URL, POSTGRES_URL};
use crate::workload::{CHAIN, FAN_OUT, Size, Workload};

/// Steps of one commit.
const GROUP_MAX: usize = 512;
/// Items that the worker pulls ahead.
const PULL_MAX: usize = 256;

/// Who waits for which step.
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<String>>>>;

/// A step that was done and is not yet durable.
struct Done {
    step: u64,
    output: String,
    waiting: oneshot::Sender<String>,
}

struct Floor {
    streams: jetstream::Context,
    subject: String,
    next: AtomicU64,
    waiting: Waiting,
}

pub(crate) async fn run(workload: Workload, size: Size) -> anyhow::Result<()> {
    let floor = Floor::connect().await?;
    serve(workload, size, async |start: Start| floor.instance(&start).await).await
}

impl Floor {
    async fn connect() -> anyhow::Result<Self> {
        let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
        let namespace = variable(NAMESPACE)?;
        let mut db = PgConnection::connect(&variable(POSTGRES_URL)?).await?;
        db.execute(include_str!("sql/floor_table.sql")).await?;
        let nats = async_nats::connect(variable(NATS_URL)?).await?;
        let streams = jetstream::new(nats.clone());
        let subject = format!("{namespace}.floor.work");
        let work = streams
            .get_or_create_stream(stream::Config {
                name: format!("{namespace}_FLOOR"),
                subjects: vec![subject.clone()],
                retention: stream::RetentionPolicy::WorkQueue,
                ..Default::default()
            })
            .await?;
        let consumer = work
            .get_or_create_consumer(
                "worker",
                consumer::pull::Config {
                    durable_name: Some("worker".to_owned()),
                    max_ack_pending: i64::try_from(2 * PULL_MAX)?,
                    ..Default::default()
                },
            )
            .await?;
        let results = format!("{namespace}.floor.results");
        let heard = nats.subscribe(results.clone()).await?;
        let waiting = Waiting::default();
        let (done, committed) = mpsc::channel(GROUP_MAX);
        tokio::spawn(ended("the worker", work_off(consumer, nats, results)));
        tokio::spawn(ended("the owner", hear(heard, Arc::clone(&waiting), done)));
        tokio::spawn(ended("the committer", commit(db, committed)));
        Ok(Self { streams, subject, next: AtomicU64::new(0), waiting })
    }

    async fn instance(&self, start: &Start) -> anyhow::Result<String> {
        match start.orchestration {
            "w2" => {
                for _ in 0..CHAIN {
                    self.step().await?;
                }
                Ok(String::new())
            }
            "w3" => Ok(try_join_all((0..FAN_OUT).map(|_| self.step())).await?.len().to_string()),
            "w5" => {
                let mut marks = Vec::new();
                for _ in 0..start.input.parse()? {
                    marks.push(self.step().await?);
                }
                Ok(marks.join(","))
            }
            _ => self.step().await,
        }
    }

    async fn step(&self) -> anyhow::Result<String> {
        let step = self.next.fetch_add(1, Ordering::Relaxed);
        let (waiting, output) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(step, waiting);
        let carried = self.streams.publish(self.subject.clone(), step.to_string().into()).await?;
        carried.await?;
        output.await.context("the committer has ended")
    }
}

/// The worker: a result for every item.
async fn work_off(consumer: consumer::PullConsumer, nats: async_nats::Client, results: String) -> anyhow::Result<()> {
    let mut items = consumer.stream().max_messages_per_batch(PULL_MAX).messages().await?;
    while let Some(item) = items.next().await {
        let item = item?;
        let result = format!("{} {}", std::str::from_utf8(&item.payload)?, now_us());
        nats.publish(results.clone(), result.into()).await?;
        item.ack().await.map_err(|error| anyhow::anyhow!(error))?;
    }
    Ok(())
}

async fn hear(mut heard: async_nats::Subscriber, waiting: Waiting, done: mpsc::Sender<Done>) -> anyhow::Result<()> {
    while let Some(message) = heard.next().await {
        let (step, output) = std::str::from_utf8(&message.payload)?.split_once(' ').context("a result")?;
        let step = step.parse()?;
        let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&step);
        if let Some(waiting) = waiting {
            done.send(Done { step, output: output.to_owned(), waiting }).await?;
        }
    }
    Ok(())
}

/// Takes whatever has arrived during its last commit.
async fn commit(mut db: PgConnection, mut committed: mpsc::Receiver<Done>) -> anyhow::Result<()> {
    let mut group: Vec<Done> = Vec::with_capacity(GROUP_MAX);
    while committed.recv_many(&mut group, GROUP_MAX).await > 0 {
        let (steps, outputs): (Vec<i64>, Vec<&str>) =
            group.iter().map(|done| (done.step.cast_signed(), done.output.as_str())).unzip();
        sqlx::query(include_str!("sql/floor_commit.sql")).bind(steps).bind(outputs).execute(&mut db).await?;
        for done in group.drain(..) {
            // Nobody waits any more when the program ends.
            let _gone = done.waiting.send(done.output);
        }
    }
    Ok(())
}

async fn ended(who: &str, work: impl Future<Output = anyhow::Result<()>>) {
    if let Err(error) = work.await {
        eprintln!("{who} of the floor has ended: {error:#}");
        std::process::exit(1);
    }
}
