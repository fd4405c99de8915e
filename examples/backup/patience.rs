//! How long a destination that takes no writes is waited for when even the state of the backup cannot be written there.
//!
//! What the activities meet ends by their retry policy; but a backup whose own state cannot be written never gets so far.

use std::time::{Duration, Instant};

use outlast::runtime::Runtime;

/// So long nothing is written before it is given up; a little more than the activities' own retries take.
pub(crate) const LONGEST: Duration = Duration::from_secs(24);
/// Failures that lie further apart are not one outage.
const LULL: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Returns when commits have failed, and only failed, for too long.
pub(crate) async fn run_out(runtime: &Runtime) {
    let mut counts = runtime.metrics_snapshot();
    let (mut failing_since, mut last_error) = (None, Instant::now());
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = runtime.metrics_snapshot();
        if now.turns > counts.turns || last_error.elapsed() > LULL {
            failing_since = None;
        }
        if now.provider_errors > counts.provider_errors {
            last_error = Instant::now();
            let since: &mut Instant = failing_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= LONGEST {
                return;
            }
        }
        counts = now;
    }
}
