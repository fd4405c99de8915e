//! Which activities a worker takes.

use std::collections::BTreeSet;

/// Most tags that one filter names.
pub const MAX_WORKER_TAGS: usize = 5;

/// Selects activities by their tag.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TagFilter {
    /// Only activities without a tag.
    #[default]
    DefaultOnly,
    /// Only activities with one of these tags.
    Tags(BTreeSet<String>),
    /// Activities without a tag or with one of these.
    DefaultAnd(BTreeSet<String>),
    /// Every activity.
    Any,
    /// No activity.
    None,
}

impl TagFilter {
    /// Only activities with one of `tags`.
    ///
    /// # Panics
    /// When there are none or more than five, or one is empty: a filter is built once, at start.
    pub fn tags<I, S>(tags: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self::Tags(checked(tags))
    }

    /// Activities without a tag, or with one of `tags`. Panics like [`TagFilter::tags`].
    pub fn default_and<I, S>(tags: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self::DefaultAnd(checked(tags))
    }

    /// Only activities without a tag.
    pub fn default_only() -> Self {
        Self::DefaultOnly
    }

    /// Every activity.
    pub fn any() -> Self {
        Self::Any
    }

    /// No activity: for a runtime that only runs orchestrations.
    pub fn none() -> Self {
        Self::None
    }

    /// Whether a worker with this filter takes an activity with this tag.
    pub fn matches(&self, tag: Option<&str>) -> bool {
        match (self, tag) {
            (Self::Any, _) | (Self::DefaultOnly | Self::DefaultAnd(_), None) => true,
            (Self::Tags(tags) | Self::DefaultAnd(tags), Some(tag)) => tags.contains(tag),
            (Self::None, _) | (Self::DefaultOnly, Some(_)) | (Self::Tags(_), None) => false,
        }
    }
}

fn checked<I, S>(tags: I) -> BTreeSet<String>
where
    I: IntoIterator<Item = S>,
    S: Into<String>,
{
    let tags: BTreeSet<String> = tags.into_iter().map(Into::into).collect();
    assert!(!tags.is_empty(), "a tag filter needs at least one tag; use TagFilter::None to take no activity");
    assert!(tags.len() <= MAX_WORKER_TAGS, "a tag filter has at most {MAX_WORKER_TAGS} tags, got {}", tags.len());
    assert!(tags.iter().all(|tag| !tag.is_empty()), "a tag must not be empty");
    tags
}
