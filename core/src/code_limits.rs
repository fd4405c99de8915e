//! The limits that orchestration code is held to.

use serde::{Deserialize, Serialize};

use crate::limits::{name_within, payload_within};
use crate::{LimitExceeded, Limits};

/// Limits that are checked while code runs: what comes of them is part of its decisions. They are recorded in the first event
/// of an execution, so that its code is answered the same whenever it is replayed, whatever the limits of the node are by
/// then; new limits count from the next execution on. Names and meanings are those of [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
#[expect(missing_docs, reason = "described in `Limits`")]
pub struct CodeLimits {
    pub payload_bytes_max: usize,
    pub name_bytes_max: usize,
    pub kv_keys_max: usize,
    pub kv_value_bytes_max: usize,
    pub custom_status_bytes_max: usize,
    pub commands_per_turn_max: usize,
}

/// Only what differs from [`CodeLimits::STANDARD`].
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_bytes_max: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name_bytes_max: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kv_keys_max: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kv_value_bytes_max: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    custom_status_bytes_max: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    commands_per_turn_max: Option<usize>,
}

impl CodeLimits {
    /// Part of the stored form: these numbers stay as they are, also when a default changes.
    const STANDARD: Self = Self {
        payload_bytes_max: 8 << 20,
        name_bytes_max: 512,
        kv_keys_max: 100,
        kv_value_bytes_max: 16 << 10,
        custom_status_bytes_max: 256 << 10,
        commands_per_turn_max: 20_000,
    };

    pub(crate) fn of(limits: &Limits) -> Self {
        Self {
            payload_bytes_max: limits.payload_bytes_max,
            name_bytes_max: limits.name_bytes_max,
            kv_keys_max: limits.kv_keys_max,
            kv_value_bytes_max: limits.kv_value_bytes_max,
            custom_status_bytes_max: limits.custom_status_bytes_max,
            commands_per_turn_max: limits.commands_per_turn_max,
        }
    }

    pub(crate) fn check_payload(&self, what: &'static str, text: &str) -> Result<(), LimitExceeded> {
        payload_within(what, text, self.payload_bytes_max)
    }

    pub(crate) fn check_name(&self, what: &'static str, name: &str) -> Result<(), LimitExceeded> {
        name_within(what, name, self.name_bytes_max)
    }

    /// Like a name, but it may be empty.
    pub(crate) fn check_kv_key(&self, key: &str) -> Result<(), LimitExceeded> {
        if key.is_empty() { Ok(()) } else { self.check_name("KV key", key) }
    }
}

impl From<Stored> for CodeLimits {
    fn from(stored: Stored) -> Self {
        let standard = Self::STANDARD;
        Self {
            payload_bytes_max: stored.payload_bytes_max.unwrap_or(standard.payload_bytes_max),
            name_bytes_max: stored.name_bytes_max.unwrap_or(standard.name_bytes_max),
            kv_keys_max: stored.kv_keys_max.unwrap_or(standard.kv_keys_max),
            kv_value_bytes_max: stored.kv_value_bytes_max.unwrap_or(standard.kv_value_bytes_max),
            custom_status_bytes_max: stored.custom_status_bytes_max.unwrap_or(standard.custom_status_bytes_max),
            commands_per_turn_max: stored.commands_per_turn_max.unwrap_or(standard.commands_per_turn_max),
        }
    }
}

impl From<CodeLimits> for Stored {
    fn from(limits: CodeLimits) -> Self {
        let standard = CodeLimits::STANDARD;
        let other = |limit: usize, standard: usize| (limit != standard).then_some(limit);
        Self {
            payload_bytes_max: other(limits.payload_bytes_max, standard.payload_bytes_max),
            name_bytes_max: other(limits.name_bytes_max, standard.name_bytes_max),
            kv_keys_max: other(limits.kv_keys_max, standard.kv_keys_max),
            kv_value_bytes_max: other(limits.kv_value_bytes_max, standard.kv_value_bytes_max),
            custom_status_bytes_max: other(limits.custom_status_bytes_max, standard.custom_status_bytes_max),
            commands_per_turn_max: other(limits.commands_per_turn_max, standard.commands_per_turn_max),
        }
    }
}
