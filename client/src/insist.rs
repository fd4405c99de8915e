//! Calls of the store that are repeated while it is away.

use std::time::Duration;

use outlast_core::Millis;
use outlast_storage::{Error, Store};
use tokio::time::Instant;

/// First and longest pause before a call is repeated: a dropped connection is back within the first, and a server that
/// restarts is not hammered by thousands of clients.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Repeats a call while the store is away, for at most `limit`. A repeat is told when the call was first made, by the store's
/// clock: that try may have succeeded and only its answer been lost.
pub(crate) async fn insist_for<T, F: Future<Output = Result<T, Error>>>(
    store: &dyn Store,
    limit: Duration,
    call: impl Fn(Option<Millis>) -> F,
) -> Result<T, Error> {
    let begun = Instant::now();
    let mut pause = RETRY_FIRST;
    let first_tried = store.now();
    let mut repeats = None;
    loop {
        match call(repeats).await {
            Err(Error::Unavailable(_)) if begun.elapsed() + pause < limit => {
                tokio::time::sleep(pause).await;
                repeats = Some(first_tried);
                pause = (pause * 2).min(RETRY_MAX);
            }
            result => return result,
        }
    }
}
