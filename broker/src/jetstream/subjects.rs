//! Every name that a server sees: streams, subjects, consumers. No other file makes one.
//!
//! User strings (tags, workers, instance ids) become tokens: short ones of plain characters stand as they are, all others
//! as `=` and a hash, and `=` is no plain character. The original travels inside the message.

use std::fmt::Write as _;

use outlast_core::{ActivityItem, ActivityRef, InstanceId, ShardId, WorkerId};
use sha2::{Digest, Sha256};

use super::Error;

/// Longest user string that stands as it is: longer ones would make subjects that no tool shows on one line.
const PLAIN_MAX: usize = 32;
/// Longest namespace: it begins every subject, and the server takes names of 255 bytes.
const NAMESPACE_MAX: usize = 64;
/// The token of activities without a tag; no hash looks like it.
const NO_TAG: &str = "=default";

/// Where an item of work waits: each queue is one consumer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum WorkQueue {
    /// Items of a tag, by its token, that belong to no session.
    Tag(String),
    /// Items of a tag, by its token, whose session nobody holds.
    Session(String),
    /// Items of sessions that this worker, by its token, holds.
    Worker(String),
}

impl WorkQueue {
    /// The queue of a tag's items.
    pub(crate) fn tag(tag: Option<&str>) -> Self {
        Self::Tag(tag.map_or_else(|| NO_TAG.to_owned(), token))
    }

    /// The queue of a tag's items whose session nobody holds.
    pub(crate) fn session(tag: Option<&str>) -> Self {
        Self::Session(tag.map_or_else(|| NO_TAG.to_owned(), token))
    }

    /// The queue of a worker.
    pub(crate) fn worker(worker: &WorkerId) -> Self {
        Self::Worker(token(worker.as_str()))
    }

    /// The queue that an item goes to.
    pub(crate) fn of(item: &ActivityItem, worker: Option<&WorkerId>) -> Self {
        match (worker, &item.session_id) {
            (Some(worker), _) => Self::worker(worker),
            (None, Some(_)) => Self::session(item.tag.as_deref()),
            (None, None) => Self::tag(item.tag.as_deref()),
        }
    }

    /// The name of its consumer.
    pub(crate) fn consumer(&self) -> String {
        match self {
            Self::Tag(token) => format!("tag-{token}"),
            Self::Session(token) => format!("session-{token}"),
            Self::Worker(token) => format!("worker-{token}"),
        }
    }

    /// The queue that a consumer of this name reads.
    pub(crate) fn of_consumer(name: &str) -> Option<Self> {
        let (kind, token) = name.split_once('-')?;
        match kind {
            "tag" => Some(Self::Tag(token.to_owned())),
            "session" => Some(Self::Session(token.to_owned())),
            "worker" => Some(Self::Worker(token.to_owned())),
            _ => None,
        }
    }

    fn prefix(&self, namespace: &str) -> String {
        match self {
            Self::Tag(token) => format!("{namespace}.work.tag.{token}"),
            Self::Session(token) => format!("{namespace}.work.session.{token}"),
            Self::Worker(token) => format!("{namespace}.work.worker.{token}"),
        }
    }
}

/// The names of one namespace.
#[derive(Clone, Debug)]
pub(crate) struct Subjects {
    namespace: String,
}

impl Subjects {
    /// Checks the namespace: 1 to 64 letters, digits, `_` and `-`.
    pub(crate) fn new(namespace: &str) -> Result<Self, Error> {
        if namespace.is_empty() || namespace.len() > NAMESPACE_MAX || !namespace.bytes().all(is_plain) {
            return Err(Error::unusable(format!(
                "the namespace {namespace:?} is not 1 to {NAMESPACE_MAX} letters, digits, '_' or '-'"
            )));
        }
        Ok(Self { namespace: namespace.to_owned() })
    }

    /// The stream of work.
    pub(crate) fn work_stream(&self) -> String {
        format!("{}_WORK", self.namespace)
    }

    /// All that the stream of work takes.
    pub(crate) fn work(&self) -> String {
        format!("{}.work.>", self.namespace)
    }

    /// Cancellations. Nodes of older versions read them from a stream that takes this subject.
    pub(crate) fn cancel(&self) -> String {
        format!("{}.control.cancel", self.namespace)
    }

    /// All items of a queue.
    pub(crate) fn queue(&self, queue: &WorkQueue) -> String {
        format!("{}.*", queue.prefix(&self.namespace))
    }

    /// One item; the same item has the same subject always.
    pub(crate) fn item(&self, queue: &WorkQueue, item: &ActivityItem) -> String {
        format!("{}.{}", queue.prefix(&self.namespace), item_token(&item.activity()))
    }

    /// The same item in whichever queue.
    pub(crate) fn item_anywhere(&self, activity: &ActivityRef) -> String {
        format!("{}.work.*.*.{}", self.namespace, item_token(activity))
    }

    /// The message of the stream of work that no consumer takes.
    pub(crate) fn anchor(&self) -> String {
        format!("{}.work.anchor", self.namespace)
    }

    /// All items in the queues of workers.
    pub(crate) fn workers(&self) -> String {
        format!("{}.work.worker.>", self.namespace)
    }

    /// The queue of a worker that an item's subject lies in.
    pub(crate) fn worker_of(&self, subject: &str) -> Option<WorkQueue> {
        let rest = subject.strip_prefix(&self.namespace)?.strip_prefix(".work.worker.")?;
        rest.split_once('.').map(|(token, _)| WorkQueue::Worker(token.to_owned()))
    }

    /// Whether `subject` lies in the queue of some worker.
    pub(crate) fn is_of_worker(&self, subject: &str) -> bool {
        subject.strip_prefix(&self.namespace).is_some_and(|rest| rest.starts_with(".work.worker."))
    }

    /// Messages to the owner of a shard.
    pub(crate) fn shard(&self, shard: ShardId) -> String {
        format!("{}.shard.{shard}", self.namespace)
    }

    /// Status updates of an instance.
    pub(crate) fn status(&self, instance: &InstanceId) -> String {
        format!("{}.status.{}", self.namespace, token(instance.as_str()))
    }

    /// Where publishers say that they use a tag for the first time.
    pub(crate) fn tags(&self) -> String {
        format!("{}.tags", self.namespace)
    }

    /// Where a consumer of the stream of work is asked for messages.
    pub(crate) fn next(&self, queue: &WorkQueue) -> String {
        format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.work_stream(), queue.consumer())
    }

    /// Where the server tells of calls of its interface that changed something.
    pub(crate) fn audit(&self) -> &'static str {
        "$JS.EVENT.ADVISORY.API"
    }

    /// The calls that may remove work: `subject` is that of the call.
    pub(crate) fn removes_work(&self, subject: &str) -> bool {
        let Some(call) = subject.strip_prefix("$JS.API.STREAM.") else { return false };
        let Some((verb, stream)) = call.rsplit_once('.') else { return false };
        matches!(verb, "PURGE" | "DELETE" | "RESTORE" | "MSG.DELETE") && stream == self.work_stream()
    }

    /// The calls that change what our stream is, or remove it.
    pub(crate) fn changes_streams(&self, subject: &str) -> bool {
        let Some(call) = subject.strip_prefix("$JS.API.STREAM.") else { return false };
        let Some((verb, stream)) = call.rsplit_once('.') else { return false };
        matches!(verb, "UPDATE" | "DELETE" | "RESTORE") && stream == self.work_stream()
    }

    /// Whether the call removes a single message.
    pub(crate) fn removes_one(&self, subject: &str) -> bool {
        subject.starts_with("$JS.API.STREAM.MSG.DELETE.")
    }

    /// The consumer that a call with this subject deletes.
    pub(crate) fn deletes_consumer(&self, subject: &str) -> Option<WorkQueue> {
        let call = subject.strip_prefix("$JS.API.CONSUMER.DELETE.")?;
        let (stream, consumer) = call.split_once('.')?;
        (stream == self.work_stream()).then(|| WorkQueue::of_consumer(consumer)).flatten()
    }
}

/// A part of a subject or name that stands for a user's string.
pub(crate) fn token(text: &str) -> String {
    if !text.is_empty() && text.len() <= PLAIN_MAX && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    format!("={}", hex(&Sha256::digest(text.as_bytes())))
}

/// 128 bits of the identity of an item: instance, execution, event and token.
fn item_token(ActivityRef { key, token }: &ActivityRef) -> String {
    let mut hash = Sha256::new();
    hash.update(key.execution.0.to_le_bytes());
    hash.update(key.event.0.to_le_bytes());
    hash.update(token.0.to_le_bytes());
    hash.update(key.instance.as_str().as_bytes());
    hex(&hash.finalize())
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// The first 128 bits.
fn hex(hash: &[u8]) -> String {
    let mut text = String::with_capacity(32);
    for byte in &hash[..16] {
        // Writing to a string cannot fail.
        let _written = write!(text, "{byte:02x}");
    }
    text
}
