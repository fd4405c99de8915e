//! The measured program's side of a measurement. Peers of the other workspace compile this file too.
//!
//! It prints `ready` when it could begin, runs a few instances when told `warm`, the workload when told `go`, prints its
//! figures as one line of JSON, and ends when its standard input does. Whoever measures reads all counters around `go`.

use std::io::BufRead;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::figures::{Figures, Seen};
use crate::workload::{Size, Workload};

/// Instances that run before anything is counted, so that connections and plans exist.
const WARM: usize = 8;

/// One instance to start.
pub(crate) struct Start {
    pub(crate) id: String,
    pub(crate) orchestration: &'static str,
    pub(crate) input: String,
}

/// What the measuring program says on standard input.
pub(crate) struct Orders(UnboundedReceiver<String>);

impl Orders {
    /// The end of standard input ends this process.
    pub(crate) fn listen() -> Self {
        let (heard, orders) = unbounded_channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if heard.send(line).is_err() {
                    break;
                }
            }
            std::process::exit(0);
        });
        Self(orders)
    }

    pub(crate) async fn expect(&mut self, word: &str) -> anyhow::Result<()> {
        let heard = self.0.recv().await.context("nobody measures any more")?;
        anyhow::ensure!(heard == word, "heard {heard:?} instead of {word:?}");
        Ok(())
    }

    /// Until this process is ended.
    pub(crate) async fn wait_for_end(mut self) {
        while self.0.recv().await.is_some() {}
        std::future::pending().await
    }
}

/// Runs a workload as it is ordered; `one` starts an instance and gives its output once its client has it.
pub(crate) async fn serve<One>(workload: Workload, size: Size, one: One) -> anyhow::Result<()>
where
    One: AsyncFn(Start) -> anyhow::Result<String>,
{
    let mut orders = Orders::listen();
    println!("ready");
    orders.expect("warm").await?;
    let warm = |number| one(Start { id: format!("warm{number}"), orchestration: "w1", input: String::new() });
    let _outputs: Vec<String> = stream::iter(0..WARM).map(warm).buffer_unordered(WARM).try_collect().await?;
    println!("warm");
    orders.expect("go").await?;
    let begun = Instant::now();
    let runs = stream::iter(0..workload.instances(size.n)).map(|number| {
        let start =
            Start { id: format!("i{number}"), orchestration: workload.orchestration(), input: size.n.to_string() };
        watch(&one, start)
    });
    let seen: Vec<Seen> = runs.buffer_unordered(size.inflight).try_collect().await?;
    let figures = Figures::of(workload, size, begun.elapsed(), &seen)?;
    println!("{}", serde_json::to_string(&figures)?);
    orders.wait_for_end().await;
    Ok(())
}

async fn watch<One>(one: &One, start: Start) -> anyhow::Result<Seen>
where
    One: AsyncFn(Start) -> anyhow::Result<String>,
{
    let begun = Instant::now();
    let output = one(start).await?;
    Ok(Seen { took: begun.elapsed(), ended_us: now_us(), output })
}

/// The clock that processes of one machine share.
pub(crate) fn now_us() -> u64 {
    let now: Duration = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
