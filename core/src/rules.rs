//! Rules of execution that have changed: which of them a history was made by stands in its first event.

use serde::{Deserialize, Serialize};

use crate::typed_values::TypedValue;
use crate::{CodeLimits, LimitExceeded, write_typed};

/// The rules that an execution follows to its end, so that replay does as the program did that made the history.
///
/// | Rules | Since then |
/// |---|---|
/// | 0 | |
/// | 1 | a text is written as it is by typed calls; ids of children and detached starts are refused as those of clients are; what a select holds back is woken when the poll ends; a full KV takes new values of its keys |
/// | 2 | the error of a typed call whose value does not fit says which value of which instance it is |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rules(u32);

impl Rules {
    /// Those of new executions.
    pub const LATEST: Self = Self(2);

    /// Whether these are the first ones, which no event names.
    pub(crate) fn are_first(&self) -> bool {
        self.0 == 0
    }

    /// Writes a value of a typed call. The first rules wrote a text as JSON, with quotes.
    pub(crate) fn write<T: Serialize>(self, value: &T) -> Result<String, serde_json::Error> {
        if self.are_first() { serde_json::to_string(value) } else { write_typed(value) }
    }

    /// The error of a typed call in `instance`, whose value cannot be read. Code may put the text into what it asks for next,
    /// so an execution keeps the text that it began with.
    pub(crate) fn unread(self, value: &TypedValue, instance: &str, error: &serde_json::Error) -> String {
        match self.0 {
            0 | 1 => format!("{} is not the expected JSON: {error}", value.former_name()),
            _ => format!("instance {instance:?}: the {value} is not the expected JSON: {error}"),
        }
    }

    /// Like [`Rules::unread`], of a value that cannot be written.
    pub(crate) fn unwritten(self, value: &TypedValue, instance: &str, error: &serde_json::Error) -> String {
        match self.0 {
            0 | 1 => format!("the value cannot be written as JSON: {error}"),
            _ => format!("instance {instance:?}: the {value} cannot be written as JSON: {error}"),
        }
    }

    /// Checks an instance id that the code of instance `own` chose.
    pub(crate) fn check_chosen_id(self, limits: &CodeLimits, own: &str, id: &str) -> Result<(), LimitExceeded> {
        limits.check_name("instance id", id)?;
        let reserved = if self.are_first() { is_like_a_childs(id) } else { is_reserved(own, id) };
        if reserved { Err(LimitExceeded::ReservedId(id.to_owned())) } else { Ok(()) }
    }

    /// Checks the id that a child gets whose code has chosen none: an instance that no client could name must not run.
    pub(crate) fn check_child_id(self, limits: &CodeLimits, id: &str) -> Result<(), LimitExceeded> {
        if self.are_first() || id.len() <= limits.name_bytes_max {
            return Ok(());
        }
        Err(LimitExceeded::ChildId { bytes: id.len(), max: limits.name_bytes_max })
    }

    /// Whether a key may be set in a KV of `keys` keys.
    pub(crate) fn takes_key(self, limits: &CodeLimits, keys: usize, is_new: bool) -> bool {
        let adds = is_new || self.are_first();
        !adds || keys + usize::from(is_new) <= limits.kv_keys_max
    }

    /// Whether completions that a select held back are woken when it ends, rather than when the poll ends.
    pub(crate) fn wakes_after_each_select(self) -> bool {
        self.are_first()
    }
}

/// Whether the id could be one that a child without an id of its own gets.
fn is_like_a_childs(id: &str) -> bool {
    let tail = id.rsplit_once("::sub::").map(|(_, tail)| tail);
    tail.is_some_and(|tail| tail.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_'))
}

/// Whether a client could not choose the id. Code may build on its own id and on those of the instances above it, which
/// have the reserved part in them.
fn is_reserved(own: &str, id: &str) -> bool {
    let above = own.match_indices("::sub::").map(|(at, _)| &own[..at]).chain([own]);
    let rest = above.filter_map(|above| id.strip_prefix(above)).last().unwrap_or(id);
    id.starts_with("sub::") || rest.contains("::sub::") || is_like_a_childs(id)
}
