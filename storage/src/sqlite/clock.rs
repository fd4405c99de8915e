//! The store's time: the machine's clock at opening, then monotonic; or a clock that a test moves.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outlast_core::Millis;

use crate::VirtualClock;

/// Never goes back.
pub(super) enum StoreClock {
    /// Anchored at opening, not even before the last write, so that it does not go back over a restart either.
    Machine { anchor: Millis, since: Instant },
    /// Moved by a test.
    Virtual(Arc<VirtualClock>),
}

impl StoreClock {
    pub(super) fn not_before(last_write: Millis) -> Self {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self::Machine { anchor: Millis(0).plus(wall).max(last_write), since: Instant::now() }
    }

    pub(super) fn now(&self) -> Millis {
        match self {
            Self::Machine { anchor, since } => anchor.plus(since.elapsed()),
            Self::Virtual(clock) => clock.now(),
        }
    }

    pub(super) async fn sleep_until(&self, at: Millis) {
        match self {
            Self::Machine { anchor, since } => {
                let wait = Duration::from_millis(at.0.saturating_sub(anchor.0)).saturating_sub(since.elapsed());
                tokio::time::sleep(wait).await;
            }
            Self::Virtual(clock) => clock.sleep_until(at).await,
        }
    }
}
