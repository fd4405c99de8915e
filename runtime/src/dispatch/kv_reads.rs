//! Reads of other instances' values: recorded as an activity, answered from the store by whoever owns the reader.

use std::sync::Arc;
use std::time::Duration;

use outlast_core::{ActivityItem, InstanceId};

use crate::dispatch::Dispatcher;

/// Pause before the store is asked again.
const STORE_AGAIN: Duration = Duration::from_millis(200);

impl Dispatcher {
    /// Reads another instance's value for an orchestration and brings it back as the activity's result.
    pub(crate) fn read_kv(self: &Arc<Self>, item: ActivityItem) {
        let (item, reading) = (Arc::new(item), self.reads.begin());
        self.until_done(move |dispatcher| {
            let (item, reading) = (Arc::clone(&item), reading.clone());
            async move {
                let _reading = reading;
                let Ok((instance, key)) = serde_json::from_str::<(String, String)>(&item.input) else { return };
                let value = loop {
                    match dispatcher.parts.store.kv(&InstanceId::new(&instance), Some(&key)).await {
                        Ok(entries) => break entries.into_iter().next().map(|entry| entry.value),
                        Err(_) if dispatcher.parts.stopping.is_cancelled() => return,
                        Err(_) => tokio::time::sleep(STORE_AGAIN).await,
                    }
                };
                let result = serde_json::to_string(&value).expect("an optional text is JSON");
                dispatcher.complete(&item.key, item.token, Ok(result));
            }
        });
    }
}
