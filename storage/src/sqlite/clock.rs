//! The store's time: the machine's clock, but never going back; or a clock that a test moves.
//!
//! Between two looks, time follows the monotonic clock, which stops while the machine sleeps. So each look compares both: if the
//! machine's clock advanced without the monotonic one, the time follows it at once: what has come due happens. If the machine's
//! clock goes back, the time goes on from where it is, so no timer is early or late because of it and no history runs backwards.
//! This also holds across a restart: the time is never before the last write. Both are logged for those who rely on machine time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use outlast_core::Millis;

use super::TARGET;
use crate::VirtualClock;

/// By this much the machine's clock may be ahead before the time follows it; less is the drift of two clocks, and corrections
/// of a second or two by a time service are small beside the timers that people set.
const DRIFT_MAX: Duration = Duration::from_secs(1);
/// From this on a difference is told: smaller ones are corrections, larger ones a sleep or a wrong clock.
const TOLD_FROM: Duration = Duration::from_secs(10);
/// A reading that took longer than this was interrupted, and its two clocks do not belong together.
const READING_MAX: Duration = Duration::from_millis(100);
/// Longest sleep between two looks at the machine's clock: after a sleep of the machine, timers are late by no more than this.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The clocks of a machine; tests have their own.
pub trait MachineClock: Send + Sync + 'static {
    /// Since the Unix epoch. It may be set, and go on while the machine sleeps.
    fn wall(&self) -> Duration;

    /// Since any moment. It never goes back, and may stand while the machine sleeps.
    fn monotonic(&self) -> Duration;
}

/// The clocks of this machine.
pub(super) struct ThisMachine(Instant);

impl Default for ThisMachine {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl MachineClock for ThisMachine {
    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO)
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Never goes back.
pub(super) enum StoreClock {
    /// Follows the machine.
    Machine(Followed),
    /// Moved by a test.
    Virtual(Arc<VirtualClock>),
}

/// The machine's clocks, and where the time stands by them.
pub(super) struct Followed {
    machine: Arc<dyn MachineClock>,
    /// The time when the monotonic clock was at zero, in milliseconds. It only rises.
    origin: AtomicU64,
    /// The time is known to be ahead of the machine's clock, and that was told.
    ahead: AtomicBool,
}

impl StoreClock {
    pub(super) fn not_before(last_write: Millis, machine: Arc<dyn MachineClock>) -> Self {
        let (wall, monotonic) = read(machine.as_ref());
        let start = last_write.max(millis(wall));
        let ahead = start.0 - millis(wall).0;
        if ahead >= millis(TOLD_FROM).0 {
            tracing::error!(
                target: TARGET,
                seconds = ahead / 1_000,
                "the database was last written at a time that this machine's clock has not reached; its time does not go back but goes \
                 on from there, utc_now included, until the clock has caught up: check the machine's clock"
            );
        }
        let origin = AtomicU64::new(start.0.saturating_sub(millis(monotonic).0));
        let ahead = AtomicBool::new(ahead >= millis(TOLD_FROM).0);
        Self::Machine(Followed { machine, origin, ahead })
    }

    pub(super) fn now(&self) -> Millis {
        match self {
            Self::Machine(followed) => followed.now(),
            Self::Virtual(clock) => clock.now(),
        }
    }

    pub(super) async fn sleep_until(&self, at: Millis) {
        match self {
            Self::Machine(followed) => loop {
                let wait = Duration::from_millis(at.0.saturating_sub(followed.now().0));
                if wait.is_zero() {
                    return;
                }
                // A timer of the executor would sleep as long as the machine does, and then for the rest.
                tokio::time::sleep(wait.min(LOOK_EVERY)).await;
            },
            Self::Virtual(clock) => clock.sleep_until(at).await,
        }
    }
}

impl Followed {
    fn now(&self) -> Millis {
        let (wall, monotonic) = read(self.machine.as_ref());
        let (wall, monotonic) = (millis(wall), millis(monotonic));
        let origin = self.origin.load(Ordering::Acquire);
        let now = Millis(origin.saturating_add(monotonic.0));
        if wall > now.plus(DRIFT_MAX) {
            // Of several that see it at once, the one that raises it most stays; time goes back for nobody.
            let raised = wall.0.saturating_sub(monotonic.0);
            let before = self.origin.fetch_max(raised, Ordering::AcqRel);
            let moved = raised.saturating_sub(before);
            if moved >= millis(TOLD_FROM).0 {
                tracing::warn!(
                    target: TARGET,
                    seconds = moved / 1_000,
                    "the machine's clock has moved on by itself: the machine slept, or its clock was set; what is due by now happens now"
                );
            }
            return Millis(before.max(raised).saturating_add(monotonic.0));
        }
        let ahead = now.0.saturating_sub(wall.0) >= millis(TOLD_FROM).0;
        if ahead != self.ahead.load(Ordering::Relaxed) && ahead != self.ahead.swap(ahead, Ordering::Relaxed) && ahead {
            tracing::warn!(
                target: TARGET,
                seconds = (now.0 - wall.0) / 1_000,
                "the machine's clock was set back; the time of the database does not go back and is ahead of it from now on"
            );
        }
        now
    }
}

/// Both clocks as of one moment.
fn read(machine: &dyn MachineClock) -> (Duration, Duration) {
    loop {
        let before = machine.monotonic();
        let wall = machine.wall();
        let after = machine.monotonic();
        // Stopped in between, the process would take its own pause for a sleep of the machine.
        if after.saturating_sub(before) <= READING_MAX {
            return (wall, after);
        }
    }
}

fn millis(duration: Duration) -> Millis {
    Millis(0).plus(duration)
}
