//! The instances in memory: what waits for each, how it gets there, and its turns from end to end.

pub(crate) mod mailbox;
pub(crate) mod warm;

pub(crate) mod due_queue;

pub(crate) mod actor;
pub(crate) mod announcement;
pub(crate) mod committer;
pub(crate) mod effects;
pub(crate) mod engine;
pub(crate) mod hydrate;
pub(crate) mod run_turn;
