//! What stands still or goes wrong, and who is told of it.

pub(crate) mod known;
pub(crate) mod lasting;
pub(crate) mod notices;
pub(crate) mod report;
