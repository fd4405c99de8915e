//! Results by reference: who needs a picture is given the id of the instance whose history holds it.
//!
//! So each picture is stored once, as the result of the activity that made it, and no input or output repeats it.

use std::collections::HashMap;

use anyhow::ensure;
use outlast::{Client, EventKind, INITIAL_EXECUTION_ID};
use serde::de::{DeserializeOwned, IgnoredAny};

/// What came of one call of an activity.
pub(crate) struct Made<In> {
    pub(crate) input: In,
    /// What it returned: a picture as text.
    pub(crate) result: String,
    /// The worker whose result counts.
    pub(crate) worker: String,
}

/// All that calls of `activity` have returned to `instance` so far, one for each call.
pub(crate) async fn made<In: DeserializeOwned>(
    client: &Client,
    instance: &str,
    activity: &str,
) -> anyhow::Result<Vec<Made<In>>> {
    let mut inputs = HashMap::new();
    let mut made = Vec::new();
    for event in client.read_execution_history(instance, INITIAL_EXECUTION_ID).await? {
        if let EventKind::ActivityScheduled { name, input, .. } = event.kind {
            if name == activity {
                inputs.insert(event.event_id, input);
            }
        } else if let EventKind::ActivityCompleted { result, run } = event.kind
            && let Some(input) = event.source_event_id.and_then(|call| inputs.remove(&call))
        {
            // A typed text is stored as it is, everything else as JSON.
            let input = serde_json::from_str(&input)?;
            made.push(Made { input, result, worker: run.unwrap_or_default().worker });
        }
    }
    Ok(made)
}

/// What the only call of `activity` has returned to `instance`.
pub(crate) async fn made_once(client: &Client, instance: &str, activity: &str) -> anyhow::Result<String> {
    let mut made = made::<IgnoredAny>(client, instance, activity).await?;
    ensure!(made.len() == 1, "{instance} has {} results of {activity}", made.len());
    Ok(made.remove(0).result)
}
