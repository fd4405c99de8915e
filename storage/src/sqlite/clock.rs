//! The store's time: the machine's clock at opening, then monotonic.

use std::time::{Duration, Instant, SystemTime};

use outlast_core::Millis;

/// Never goes back, not even over a restart: it begins no earlier than the last write.
pub(super) struct StoreClock {
    anchor: Millis,
    since: Instant,
}

impl StoreClock {
    pub(super) fn not_before(last_write: Millis) -> Self {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { anchor: Millis(0).plus(wall).max(last_write), since: Instant::now() }
    }

    pub(super) fn now(&self) -> Millis {
        self.anchor.plus(self.since.elapsed())
    }

    pub(super) async fn sleep_until(&self, at: Millis) {
        let wait = Duration::from_millis(at.0.saturating_sub(self.anchor.0)).saturating_sub(self.since.elapsed());
        // Timers of the executor have a resolution of 1 ms and may not be early, so one more look is never needed.
        tokio::time::sleep(wait).await;
    }
}
