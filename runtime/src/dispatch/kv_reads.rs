//! Reads of other instances' values, answered from the store by the owner of the reading instance.

use std::sync::Arc;
use std::time::Duration;

use outlast_core::KvRead;

use crate::dispatch::Dispatcher;

/// Pause before the store is asked again: the reader waits, and a restarted store is there after a few.
const STORE_AGAIN: Duration = Duration::from_millis(200);

impl Dispatcher {
    /// Reads another instance's value for an orchestration.
    pub(crate) fn read_kv(self: &Arc<Self>, read: KvRead) {
        let (read, reading) = (Arc::new(read), self.reads.begin());
        self.until_done(move |dispatcher| {
            let (read, reading) = (Arc::clone(&read), reading.clone());
            async move {
                let _reading = reading;
                let value = loop {
                    match dispatcher.parts.store.kv(&read.instance, Some(&read.key)).await {
                        Ok(entries) => break entries.into_iter().next().map(|entry| entry.value),
                        Err(_) if dispatcher.parts.stopping.is_cancelled() => return,
                        Err(_) => tokio::time::sleep(STORE_AGAIN).await,
                    }
                };
                let result = serde_json::to_string(&value).expect("an optional text is JSON");
                dispatcher.complete(&read.asked_by, read.token, Ok(result));
            }
        });
    }
}
