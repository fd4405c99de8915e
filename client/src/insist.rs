//! Calls of the store that are repeated while it is away.

use std::time::Duration;

use outlast_storage::Error;
use tokio::time::Instant;

/// First and longest pause before a call is repeated.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Repeats a call while the store is away, for at most `limit`. The call is told how long ago it was first made, zero at the
/// first try; on a repeat, an earlier try may have succeeded and only its answer been lost.
pub(crate) async fn insist_for<T, F: Future<Output = Result<T, Error>>>(
    limit: Duration,
    call: impl Fn(Duration) -> F,
) -> Result<T, Error> {
    let begun = Instant::now();
    let mut pause = RETRY_FIRST;
    let mut first_tried = Duration::ZERO;
    loop {
        match call(first_tried).await {
            Err(Error::Unavailable(_)) if begun.elapsed() + pause < limit => {
                tokio::time::sleep(pause).await;
                first_tried = begun.elapsed();
                pause = (pause * 2).min(RETRY_MAX);
            }
            result => return result,
        }
    }
}
