//! Names and numbers that identify things; every one is a type of its own, so that they cannot be mixed up.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the text as it is.
            pub fn new(text: impl AsRef<str>) -> Self {
                Self(Arc::from(text.as_ref()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Ord for $name {
            /// By text. Copies of one id, of which ordered maps are full, need no look at it.
            fn cmp(&self, other: &Self) -> Ordering {
                if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::new(text)
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self::new(text)
            }
        }
    };
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number that follows.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

text_id! {
    /// The id of an orchestration instance, chosen by the caller.
    InstanceId
}
text_id! {
    /// Identifies a message from outside; a second message with the same id has no effect.
    MessageId
}
text_id! {
    /// A worker process; new at every start.
    WorkerId
}
text_id! {
    /// A node (a runtime that may hold shards); new at every start.
    NodeId
}
number_id! {
    /// One history of an instance, from 1; continue-as-new begins the next.
    ExecutionId(u64)
}
number_id! {
    /// Position in a history, from 1 without gap.
    EventId(u64)
}
number_id! {
    /// A slice of the instances.
    ShardId(u16)
}
number_id! {
    /// Fencing number of the right to run a shard; rises at every change of hands.
    Epoch(u64)
}
number_id! {
    /// 64 random bits that an effect carries, so that a result of an earlier life of the same id is recognised.
    Token(u64)
}
number_id! {
    /// Position of a row in the inbox.
    InboxSeq(i64)
}
number_id! {
    /// Milliseconds since the Unix epoch, by the store's clock.
    Millis(u64)
}

impl Millis {
    /// The end of the year 9999: whatever is due later is due then. Every store and every calendar can hold it.
    pub const FAR: Self = Self(253_402_300_799_999);

    /// The moment `delay` later.
    pub fn plus(self, delay: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))).min(Self::FAR)
    }

    /// The moment so long before, or 1970.
    pub fn minus(self, ago: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl ShardId {
    /// The shard that an instance id hashes onto (FNV-1a over the bytes, modulo `shards`).
    pub fn of(instance: &InstanceId, shards: u16) -> Self {
        Self(u16::try_from(hash(instance.as_str()) % u64::from(shards.max(1))).unwrap_or(0))
    }
}

impl Token {
    /// The token of the effect that event `id` of a turn stands for; the turn's random bits are `seed`.
    pub(crate) fn derive(seed: u64, id: EventId) -> Self {
        Self(mix(seed ^ mix(id.0)))
    }
}

/// The number of an instance's first execution.
pub const INITIAL_EXECUTION_ID: u64 = 1;
/// The number of an execution's first event.
pub const INITIAL_EVENT_ID: u64 = 1;

/// FNV-1a over the bytes, mixed.
pub(crate) fn hash(text: &str) -> u64 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(text.bytes().fold(0xcbf2_9ce4_8422_2325, fnv))
}

/// The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): every input bit reaches every output bit.
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What identifies a scheduled activity everywhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ActivityKey {
    /// The instance that scheduled it.
    pub instance: InstanceId,
    /// The execution that scheduled it.
    pub execution: ExecutionId,
    /// The scheduling event.
    pub event: EventId,
}

/// An activity of one life of its instance. An id that is deleted and begins anew has the same keys again, under other tokens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ActivityRef {
    /// Which activity.
    pub key: ActivityKey,
    /// The token of its scheduling event.
    pub token: Token,
}
