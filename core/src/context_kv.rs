//! The key-value state of an instance, as its code uses it.

#[expect(clippy::disallowed_types, reason = "the published return type of get_kv_all_values")]
use std::collections::HashMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::journal::{KvValue, OpKind, Outcome};
use crate::typed_values::TypedValue;
use crate::{DurableFuture, EventKind, KV_READ_ACTIVITY, LimitExceeded, Millis, OrchestrationContext, Token};

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
        let key = key.into();
        match self.write(value, || TypedValue::KvValue { key: key.clone() }) {
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
        let key = key.as_ref();
        let Some(value) = self.get_kv_value(key) else { return Ok(None) };
        self.read(&value, &TypedValue::KvValue { key: key.to_owned() }).map(Some)
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
        let (instance, key) = (instance.into(), key.into());
        let value = TypedValue::KvValueOf { instance: instance.clone(), key: key.clone() };
        self.read_kv(instance, key).map(self.reader(value))
    }

    /// [`OrchestrationContext::get_kv_value_from_instance`] with a typed value.
    pub fn get_kv_value_from_instance_typed<T: DeserializeOwned + Send + 'static>(
        &self,
        instance: impl Into<String>,
        key: impl Into<String>,
    ) -> DurableFuture<Result<Option<T>, String>> {
        let (ctx, instance, key) = (self.clone(), instance.into(), key.into());
        let value = TypedValue::KvValueOf { instance: instance.clone(), key: key.clone() };
        self.read_kv(instance, key).map(move |result| {
            let text: Option<String> = ctx.read(&result?, &value)?;
            text.map(|text| ctx.read(&text, &value)).transpose()
        })
    }

    fn read_kv(&self, instance: String, key: String) -> DurableFuture<Result<String, String>> {
        let written =
            self.write(&(&instance, &key), || TypedValue::KvValueOf { instance: instance.clone(), key: key.clone() });
        let input = match written {
            Ok(input) => input,
            Err(error) => return DurableFuture::settled(&self.journal, Err(error)),
        };
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
        DurableFuture::open(&self.journal, event, OpKind::Activity { token }, Outcome::into_result)
    }
}
