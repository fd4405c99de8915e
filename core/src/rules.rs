//! Rules of execution that have changed: which of them a history was made by stands in its first event.

use serde::{Deserialize, Serialize};

use crate::write_typed;

/// The rules that an execution follows to its end, so that replay does as the program did that made the history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rules(u32);

impl Rules {
    /// Those of new executions.
    pub const LATEST: Self = Self(1);

    /// Whether these are the first ones, which no event names.
    pub(crate) fn are_first(&self) -> bool {
        self.0 == 0
    }

    /// Writes a value of a typed call. The first rules wrote a text as JSON, with quotes.
    pub(crate) fn write<T: Serialize>(self, value: &T) -> Result<String, serde_json::Error> {
        if self.are_first() { serde_json::to_string(value) } else { write_typed(value) }
    }
}
