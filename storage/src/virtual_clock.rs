//! A clock that a test moves; for stores whose time nothing outside of the test depends on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outlast_core::Millis;
use tokio::sync::Notify;

/// Stands still until it is moved, and never goes back.
#[derive(Debug)]
pub struct VirtualClock {
    now: Mutex<Millis>,
    moved: Notify,
}

impl VirtualClock {
    /// A clock that begins at `start`.
    pub fn starting_at(start: Millis) -> Arc<Self> {
        Arc::new(Self { now: Mutex::new(start), moved: Notify::new() })
    }

    /// The time.
    pub fn now(&self) -> Millis {
        *self.lock()
    }

    /// Moves on to `at`, if that is later, and wakes all sleepers to look.
    pub fn advance_to(&self, at: Millis) {
        {
            let mut now = self.lock();
            *now = (*now).max(at);
        }
        self.moved.notify_waiters();
    }

    /// Returns when the time is `at` or later.
    pub async fn sleep_until(&self, at: Millis) {
        loop {
            // Registered before the look, so that no move falls in between.
            let mut moved = std::pin::pin!(self.moved.notified());
            moved.as_mut().enable();
            if self.now() >= at {
                return;
            }
            moved.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Millis> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
