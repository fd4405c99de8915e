//! Waits: updates are pushed, with slow polling underneath. It reads rows, never a history.

use std::fmt;
use std::time::Duration;

use outlast_core::{ExecutionId, InstanceId, OrchestrationStatus, read_typed};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::{Client, ClientError};

/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 86_400);

/// How long a wait lasts, and how long it relies on updates before it looks again.
struct Patience {
    timeout: Duration,
    poll: Duration,
}

/// What a pushed update means for a wait.
enum Told<T> {
    /// It is over.
    Found(T),
    /// Something else has changed.
    NotYet,
    /// The store has to be asked.
    Look,
}

impl<T> From<Option<T>> for Told<T> {
    fn from(found: Option<T>) -> Self {
        found.map_or(Self::NotYet, Self::Found)
    }
}

impl Client {
    /// Waits until the instance has ended: `Completed` or `Failed`, or `ClientError::Timeout`.
    pub async fn wait_for_orchestration(
        &self,
        instance: &str,
        timeout: Duration,
    ) -> Result<OrchestrationStatus, ClientError> {
        let ended = |status: &OrchestrationStatus| status.is_terminal().then(|| status.clone());
        let look = || async {
            let (status, execution) = self.look_at(instance).await?;
            Ok((ended(&status), execution))
        };
        self.wait(instance, Patience { timeout, poll: self.options.poll_interval }, |status| ended(status).into(), look)
            .await
    }

    /// Waits for the output: JSON, or else a text as it is; a failed orchestration is `ClientError::OrchestrationFailed`.
    pub async fn wait_for_orchestration_typed<Out: DeserializeOwned>(
        &self,
        instance: &str,
        timeout: Duration,
    ) -> Result<Out, ClientError> {
        match self.wait_for_orchestration(instance, timeout).await? {
            OrchestrationStatus::Completed { output, .. } => {
                from_text(instance, "result of the orchestration", &output)
            }
            OrchestrationStatus::Failed { details, .. } => Err(ClientError::OrchestrationFailed { details }),
            OrchestrationStatus::Running { .. } | OrchestrationStatus::NotFound => Err(ClientError::Timeout),
        }
    }

    /// Waits until the custom status was set after `last_seen_version`, or the instance has ended.
    pub async fn wait_for_status_change(
        &self,
        instance: &str,
        last_seen_version: u64,
        poll_interval: Duration,
        timeout: Duration,
    ) -> Result<OrchestrationStatus, ClientError> {
        let changed = |status: &OrchestrationStatus| {
            let changed = match status {
                OrchestrationStatus::Running { custom_status_version, .. } => {
                    *custom_status_version > last_seen_version
                }
                OrchestrationStatus::Completed { .. } | OrchestrationStatus::Failed { .. } => true,
                OrchestrationStatus::NotFound => false,
            };
            changed.then(|| status.clone())
        };
        let look = || async {
            let (status, execution) = self.look_at(instance).await?;
            Ok((changed(&status), execution))
        };
        self.wait(instance, Patience { timeout, poll: poll_interval }, |status| changed(status).into(), look).await
    }

    /// Waits until the key has a value.
    pub async fn wait_for_kv_value(&self, instance: &str, key: &str, timeout: Duration) -> Result<String, ClientError> {
        let look = || async { Ok((self.look_at_kv(instance, key).await?, ExecutionId(0))) };
        self.wait(instance, Patience { timeout, poll: self.options.poll_interval }, |_| Told::Look, look).await
    }

    /// Waits until the key has a value: JSON, or else a text as it is.
    pub async fn wait_for_kv_value_typed<T: DeserializeOwned>(
        &self,
        instance: &str,
        key: &str,
        timeout: Duration,
    ) -> Result<T, ClientError> {
        let value = self.wait_for_kv_value(instance, key, timeout).await?;
        from_text(instance, format_args!("value of key {key:?}"), &value)
    }

    /// Looks until `look` finds something, or `told` finds it in a pushed update. Subscribes before the first look, so that no
    /// change falls in between. An instance just started here was subscribed to before its start, so its first look may wait.
    async fn wait<T, L: Future<Output = Result<(Option<T>, ExecutionId), ClientError>>>(
        &self,
        instance: &str,
        Patience { timeout, poll }: Patience,
        told: impl Fn(&OrchestrationStatus) -> Told<T>,
        look: impl Fn() -> L,
    ) -> Result<T, ClientError> {
        let id = InstanceId::new(instance);
        let begun = self.just_started.take(&id).filter(|_| timeout > poll);
        let mut look_now = begun.is_none();
        let (begun_by, mut updates) = match begun {
            Some(started) => (Some(started.by), started.updates),
            None => (None, self.broker.watch(&id)),
        };
        let deadline = after(timeout);
        let mut execution = ExecutionId(0);
        loop {
            if std::mem::replace(&mut look_now, true) {
                match look().await {
                    Ok((Some(found), _)) => return Ok(found),
                    Ok((None, seen)) => execution = seen,
                    Err(error) if error.is_retryable() && Instant::now() < deadline => {}
                    Err(error) => return Err(error),
                }
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(ClientError::Timeout);
            }
            let next_look = deadline.min(after(poll.max(Duration::from_millis(1))));
            loop {
                let changed = tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(next_look) => break,
                    changed = updates.changed() => changed,
                };
                if changed.is_err() {
                    // Subscribes again before the next look, so that no change falls in between.
                    updates = self.broker.watch(&id);
                    break;
                }
                let (status, of, is_of_this_life) = {
                    let update = updates.borrow_and_update();
                    (update.status.clone(), update.execution, begun_by.is_some() && update.begun_by == begun_by)
                };
                if status.is_some() && of < execution {
                    // A late update, of an execution that is over.
                    continue;
                }
                match status.as_ref().map_or(Told::Look, &told) {
                    Told::Found(found) if is_of_this_life => return Ok(found),
                    Told::NotYet => {}
                    // This may be from an earlier life of the id, since deleted and started again: each life numbers its
                    // executions from 1. The store knows.
                    Told::Found(_) | Told::Look => break,
                }
            }
        }
    }
}

/// The moment `wait` from now; for ever is some decades.
fn after(wait: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(wait).unwrap_or_else(|| now + FOR_EVER)
}

pub(crate) fn from_text<T: DeserializeOwned>(
    instance: &str,
    what: impl fmt::Display,
    text: &str,
) -> Result<T, ClientError> {
    let unread = |error| format!("instance {instance:?}: the {what} is not the expected JSON: {error}");
    read_typed(text).map_err(|error| ClientError::invalid(unread(error)))
}
