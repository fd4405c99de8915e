//! Calls that arrive together go to the database together: whatever arrived during the last trip makes up the next one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures::FutureExt as _;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::executor::ended;
use crate::Error;
use crate::error::panicked;

/// Calls that share a trip: more make it no cheaper for each, and all of them wait for the slowest.
const CALLS_MAX: usize = 256;
/// Bytes that share a trip, once there is more than one call: small calls must not wait while many megabytes are sent.
const BYTES_MAX: usize = 4 << 20;
/// Calls that wait, sixteen full trips; beyond it callers wait with them, so that memory is bounded while the store is away.
const WAITING_MAX: usize = 4_096;

/// The way to a task that makes the trips.
pub(super) struct Batcher<W, A> {
    calls: mpsc::Sender<Call<W, A>>,
}

struct Call<W, A> {
    work: W,
    bytes: usize,
    answer: oneshot::Sender<Result<A, Error>>,
}

impl<W: Send + 'static, A: Send + 'static> Batcher<W, A> {
    /// At most `trips` are under way at once; with one, calls take effect in the order of their arrival.
    pub(super) fn start<F>(trips: usize, trip: impl Fn(Vec<W>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Vec<A>, Error>> + Send + 'static,
    {
        let (calls, queue) = mpsc::channel(WAITING_MAX);
        tokio::spawn(make_trips(queue, trips, trip));
        Self { calls }
    }

    /// Makes one call; `bytes` is how much it carries.
    pub(super) async fn call(&self, work: W, bytes: usize) -> Result<A, Error> {
        let (answer, answered) = oneshot::channel();
        // The task takes calls as long as its executor runs.
        self.calls.send(Call { work, bytes, answer }).await.map_err(|_| ended())?;
        // A call that is made while the executor ends may stay in the channel, and so does the answer's sender.
        tokio::select! {
            biased;
            answer = answered => answer.unwrap_or_else(|_| Err(ended())),
            () = self.calls.closed() => Err(ended()),
        }
    }
}

async fn make_trips<W, A, F>(mut queue: mpsc::Receiver<Call<W, A>>, trips: usize, trip: impl Fn(Vec<W>) -> F)
where
    W: Send + 'static,
    A: Send + 'static,
    F: Future<Output = Result<Vec<A>, Error>> + Send + 'static,
{
    let free = Arc::new(Semaphore::new(trips));
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(call) => Some(call),
            None => queue.recv().await,
        };
        let Some(first) = first else { return };
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while batch.len() < CALLS_MAX {
            let Ok(call) = queue.try_recv() else { break };
            if bytes + call.bytes > BYTES_MAX {
                next = Some(call);
                break;
            }
            bytes += call.bytes;
            batch.push(call);
        }
        let (work, answers): (Vec<W>, Vec<_>) = batch.into_iter().map(|call| (call.work, call.answer)).unzip();
        // A panic of a trip is an error of those whose calls it carries; the next ones go on.
        let begun = catch_unwind(AssertUnwindSafe(|| trip(work)));
        let round = async move {
            let results = match begun {
                Ok(results) => {
                    AssertUnwindSafe(results).catch_unwind().await.unwrap_or_else(|panic| Err(panicked(panic)))
                }
                Err(panic) => Err(panicked(panic)),
            };
            drop(permit);
            tell(answers, results);
        };
        if trips == 1 { round.await } else { drop(tokio::spawn(round)) }
    }
}

/// A caller that has gone away does not need its answer.
fn tell<A>(answers: Vec<oneshot::Sender<Result<A, Error>>>, results: Result<Vec<A>, Error>) {
    match results {
        Ok(results) => answers.into_iter().zip(results).for_each(|(answer, result)| {
            let _gone = answer.send(Ok(result));
        }),
        Err(error) => answers.into_iter().for_each(|answer| {
            let _gone = answer.send(Err(error.clone()));
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::Batcher;
    use crate::Error;

    #[tokio::test]
    async fn a_trip_that_panics_is_an_error_of_its_calls_alone() {
        for trips in [1, 4] {
            let calls = Batcher::start(trips, |work: Vec<u32>| {
                assert!(!work.contains(&0), "before it begins");
                async move {
                    assert!(!work.contains(&1), "under way");
                    Ok(work)
                }
            });
            for (number, text) in [(0, "before it begins"), (1, "under way")] {
                let told = calls.call(number, 1).await;
                assert!(matches!(&told, Err(Error::Unavailable(why)) if why.contains(text)), "{told:?}");
                assert_eq!(calls.call(2, 1).await.ok(), Some(2));
            }
        }
    }
}
