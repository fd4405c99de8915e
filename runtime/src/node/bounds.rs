//! Counts what is under way, and bounds it.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Counts what is under way.
#[derive(Clone, Default)]
pub(crate) struct UnderWay(Arc<()>);

impl UnderWay {
    /// Something begins; it ends when the value is dropped.
    pub(crate) fn begin(&self) -> Self {
        self.clone()
    }

    pub(crate) fn is_none(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

/// This many permits, or as many as there can be.
pub(crate) fn permits(count: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
}
