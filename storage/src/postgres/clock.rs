//! The database's time, known from its answers: never ahead of it, never going back.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use outlast_core::Millis;

/// An answer older than this is not trusted to have measured less delay than a newer one: by then two clocks have drifted
/// apart by up to a millisecond, which is what a trip takes.
const ANCHOR_AGE_MAX: Duration = Duration::from_secs(10);

/// What the database said last, and when it arrived.
pub(super) struct ServerClock {
    state: Mutex<State>,
}

struct State {
    anchor: Millis,
    since: Instant,
    told: Millis,
}

impl ServerClock {
    pub(super) fn new(now: Millis) -> Self {
        Self { state: Mutex::new(State { anchor: now, since: Instant::now(), told: now }) }
    }

    /// Takes in the time of an answer that has just arrived. It was true a moment ago, so it is never ahead.
    pub(super) fn heard(&self, server: Millis) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let estimate = state.anchor.plus(now - state.since);
        if server >= estimate || now - state.since > ANCHOR_AGE_MAX {
            state.anchor = server;
            state.since = now;
        }
    }

    pub(super) fn now(&self) -> Millis {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.told = state.told.max(state.anchor.plus(state.since.elapsed()));
        state.told
    }

    pub(super) async fn sleep_until(&self, at: Millis) {
        loop {
            let now = self.now();
            if now >= at {
                return;
            }
            // Answers that arrive meanwhile may show that it is later than thought.
            tokio::time::sleep(Duration::from_millis(at.0 - now.0).min(Duration::from_secs(1))).await;
        }
    }
}
