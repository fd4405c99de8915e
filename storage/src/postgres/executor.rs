//! Whether the executor that a store was connected in still runs: its connections and tasks end with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;

use crate::Error;

/// The executor of a store.
pub(super) struct Executor {
    ended: Arc<AtomicBool>,
    /// Ends the task that notices it, when the store goes first.
    _store: oneshot::Sender<()>,
}

/// Dropped with its task: by the executor, or when the store is gone.
struct Noticed(Arc<AtomicBool>);

impl Drop for Noticed {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Executor {
    /// The one that runs now.
    pub(super) fn here() -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let noticed = Noticed(Arc::clone(&ended));
        let (store, gone) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let _noticed = noticed;
            let _gone = gone.await;
        });
        Self { ended, _store: store }
    }

    /// A connection of an executor that has ended would panic in the one that uses it.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.ended.load(Ordering::Acquire) { Err(ended()) } else { Ok(()) }
    }
}

/// What to do about it.
pub(super) fn ended() -> Error {
    Error::unusable(
        "the Tokio runtime that this provider was connected in has ended: connect a provider in the runtime that uses it, or keep \
         that one running",
    )
}
