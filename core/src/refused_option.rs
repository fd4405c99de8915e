//! Options that cannot work are refused where they are given, by name, before anything starts.

use std::fmt;
use std::ops::RangeInclusive;

use thiserror::Error;

/// An option whose value cannot work.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the option {option} is {value}: it must be {must}")]
pub struct RefusedOption {
    /// The type and field, as in `Limits::commit_group_max`.
    pub option: &'static str,
    /// What was given.
    pub value: String,
    /// What would work.
    pub must: String,
}

impl RefusedOption {
    /// Refuses what lies outside of `allowed`.
    pub fn unless_in<T: PartialOrd + fmt::Debug>(
        option: &'static str,
        value: &T,
        allowed: RangeInclusive<T>,
    ) -> Result<(), Self> {
        if allowed.contains(value) {
            return Ok(());
        }
        let must = format!("from {:?} to {:?}", allowed.start(), allowed.end());
        Err(Self { option, value: format!("{value:?}"), must })
    }

    /// Refuses 0, by which nothing would ever go on.
    pub fn if_zero<T: PartialEq + From<u8> + fmt::Debug>(option: &'static str, value: &T) -> Result<(), Self> {
        if *value != T::from(0) {
            return Ok(());
        }
        Err(Self { option, value: format!("{value:?}"), must: "at least 1".to_owned() })
    }
}
