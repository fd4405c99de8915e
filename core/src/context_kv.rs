//! The key-value state of an instance, as its code uses it.

#[expect(clippy::disallowed_types, reason = "the published return type of get_kv_all_values")]
use std::collections::HashMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::from_text;
use crate::journal::{KvValue, OpKind};
use crate::{DurableFuture, EventKind, LimitExceeded, Millis, OrchestrationContext, Token};

/// The activity name under which the owner itself reads another instance's value.
pub const KV_READ_ACTIVITY: &str = "outlast::read_kv";

impl OrchestrationContext {
    /// Sets a value. Breaking a limit (100 keys, 16 KiB a value by default) fails the instance.
    pub fn set_kv_value(&self, key: impl Into<String>, value: impl Into<String>) {
        let (key, value) = (key.into(), value.into());
        let now = {
            let state = self.journal.lock();
            let (limits, now) = (state.limits, state.now);
            let takes_key = state.identity.rules.takes_key(&limits, state.kv.len(), !state.kv.contains_key(&key));
            drop(state);
            if let Err(refused) = limits.check_kv_key(&key) {
                return self.refuse(refused);
            }
            if value.len() > limits.kv_value_bytes_max {
                let max = limits.kv_value_bytes_max;
                let (bytes, limit) = (value.len(), "kv_value_bytes_max");
                return self.refuse(LimitExceeded::Text { what: "KV value", bytes, max, limit });
            }
            if !takes_key {
                let max = limits.kv_keys_max;
                return self
                    .refuse(format!("KV has {max} keys already (kv_keys_max): clear some before setting {key:?}"));
            }
            now
        };
        let event = EventKind::KeyValueSet { key: key.clone(), value: value.clone(), last_updated_at_ms: now.0 };
        self.journal.emit(None, event);
        self.journal.lock().kv.insert(key, KvValue { value, updated: now });
    }

    /// [`OrchestrationContext::set_kv_value`] with a typed value.
    pub fn set_kv_value_typed<T: Serialize>(&self, key: impl Into<String>, value: &T) {
        match self.write(value) {
            Ok(value) => self.set_kv_value(key, value),
            Err(error) => self.refuse(error),
        }
    }

    /// A value of this instance.
    pub fn get_kv_value(&self, key: impl AsRef<str>) -> Option<String> {
        let key = key.as_ref();
        self.journal.lock().kv.get(key).map(|entry| entry.value.clone())
    }

    /// A value of this instance: JSON, or else a text as it is.
    pub fn get_kv_value_typed<T: DeserializeOwned>(&self, key: impl AsRef<str>) -> Result<Option<T>, String> {
        self.get_kv_value(key).map(|value| from_text(Ok(value))).transpose()
    }

    /// All values. The map has no order: sort before anything durable depends on it.
    #[expect(clippy::disallowed_types, reason = "the published return type; nothing in core iterates it")]
    pub fn get_kv_all_values(&self) -> HashMap<String, String> {
        self.journal.lock().kv.iter().map(|(key, entry)| (key.clone(), entry.value.clone())).collect()
    }

    /// All keys, sorted.
    pub fn get_kv_all_keys(&self) -> Vec<String> {
        self.journal.lock().kv.keys().cloned().collect()
    }

    /// How many keys there are.
    pub fn get_kv_length(&self) -> usize {
        self.journal.lock().kv.len()
    }

    /// Removes a key.
    pub fn clear_kv_value(&self, key: impl Into<String>) {
        let key = key.into();
        self.journal.emit(None, EventKind::KeyValueCleared { key: key.clone() });
        self.journal.lock().kv.remove(&key);
    }

    /// Removes all keys.
    pub fn clear_all_kv_values(&self) {
        self.journal.emit(None, EventKind::KeyValuesCleared);
        self.journal.lock().kv.clear();
    }

    /// Removes keys last set before `cutoff_ms` (milliseconds since the Unix epoch); returns how many.
    pub fn prune_kv_values_updated_before(&self, cutoff_ms: u64) -> usize {
        let old: Vec<String> = {
            let state = self.journal.lock();
            state.kv.iter().filter(|(_, entry)| entry.updated < Millis(cutoff_ms)).map(|(key, _)| key.clone()).collect()
        };
        let count = old.len();
        for key in old {
            self.clear_kv_value(key);
        }
        count
    }

    /// Reads a value of another instance from the store; the answer becomes part of the history.
    pub fn get_kv_value_from_instance(
        &self,
        instance: impl Into<String>,
        key: impl Into<String>,
    ) -> DurableFuture<Result<Option<String>, String>> {
        self.read_kv(instance.into(), key.into()).map(from_text::<Option<String>>)
    }

    /// [`OrchestrationContext::get_kv_value_from_instance`] with a typed value.
    pub fn get_kv_value_from_instance_typed<T: DeserializeOwned + Send + 'static>(
        &self,
        instance: impl Into<String>,
        key: impl Into<String>,
    ) -> DurableFuture<Result<Option<T>, String>> {
        self.read_kv(instance.into(), key.into()).map(|result| {
            let value: Option<String> = from_text(result)?;
            value.map(|text| from_text(Ok(text))).transpose()
        })
    }

    fn read_kv(&self, instance: String, key: String) -> DurableFuture<Result<String, String>> {
        self.with_text(&(instance, key), |input| {
            let token = {
                let state = self.journal.lock();
                Token::derive(state.turn_seed, state.next_event)
            };
            let event = EventKind::ActivityScheduled {
                name: KV_READ_ACTIVITY.to_owned(),
                input,
                session_id: None,
                tag: None,
                token,
                attempt: 1,
                first_event_id: None,
                timeouts: crate::ActivityTimeouts::default(),
            };
            DurableFuture::open(&self.journal, (event, OpKind::Activity { token }), crate::context::result)
        })
    }
}
