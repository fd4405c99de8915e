//! Looks after the tasks of a broker: a panic is reported in the log and to clients, and the task is restarted.
//!
//! What a task keeps across a panic (its queue, what it has seen) is handed to it again by `start`. The rest is made up for:
//! owners offer what is outstanding, the server misses acknowledgements, waiting clients look into the store.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use outlast_core::panic_text;
use tokio::time::Instant;

use super::troubles::Troubles;

/// Pause before the first restart; it doubles. Short, since nothing is pulled or watched meanwhile.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest pause before a restart: a task that fails for a reason outside is back a second after that is mended.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A task that has run for so long is not one that fails again and again.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// Runs what `start` makes until it returns, anew after each panic.
pub(crate) async fn keep<F>(troubles: Arc<Troubles>, task: &'static str, mut start: impl FnMut() -> F)
where
    F: Future<Output = ()>,
{
    let mut pause = PAUSE;
    loop {
        let begun = Instant::now();
        // The future is made inside: what makes it may panic too.
        let Err(panic) = AssertUnwindSafe(async { start().await }).catch_unwind().await else { return };
        note_panic(&troubles, task, panic);
        if begun.elapsed() >= WELL_AFTER {
            pause = PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Says what a part of the broker that goes on has panicked with.
pub(crate) fn note_panic(troubles: &Troubles, task: &str, panic: Box<dyn Any + Send>) {
    let text = panic_text(panic).unwrap_or_else(|| "without a message".to_owned());
    troubles.note(format!(
        "a task of the broker on this node ({task}) panicked and goes on: {text}: a fault of Outlast, please report it"
    ));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::{Mutex, mpsc};

    use super::keep;
    use crate::jetstream::troubles::Troubles;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_goes_on_with_its_queue_and_is_listed() {
        let (troubles, starts) = (Arc::new(Troubles::default()), AtomicU32::new(0));
        let (sender, queue) = mpsc::unbounded_channel();
        (1..=5).for_each(|number| sender.send(number).expect("the queue is there"));
        drop(sender);
        let (queue, handled) = (Arc::new(Mutex::new(queue)), Arc::new(Mutex::new(Vec::new())));
        keep(Arc::clone(&troubles), "numbers", || {
            let (queue, handled) = (Arc::clone(&queue), Arc::clone(&handled));
            starts.fetch_add(1, Ordering::Relaxed);
            async move {
                let mut queue = queue.lock().await;
                while let Some(number) = queue.recv().await {
                    assert!(number % 2 == 1, "an even number");
                    handled.lock().await.push(number);
                }
            }
        })
        .await;
        assert_eq!((handled.lock().await.as_slice(), starts.into_inner()), ([1, 3, 5].as_slice(), 3));
        let listed = troubles.list();
        assert!(
            matches!(listed.as_slice(), [one] if one.reason.contains("(numbers) panicked and goes on: an even number"))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_whose_start_panics_again_and_again_is_tried_on() {
        let (troubles, mut starts) = (Arc::new(Troubles::default()), 0);
        let start = || {
            starts += 1;
            assert!(starts > 20, "not yet");
            std::future::ready(())
        };
        keep(troubles, "late", start).await;
        assert_eq!(starts, 21);
    }
}
