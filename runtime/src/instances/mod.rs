//! Instances in memory: their mailboxes, when they are due, and their turns from end to end.

pub(crate) mod mailbox;
pub(crate) mod warm;

pub(crate) mod due_queue;

pub(crate) mod actor;
pub(crate) mod announcement;
pub(crate) mod commit_outcome;
pub(crate) mod committer;
pub(crate) mod effects;
pub(crate) mod engine;
pub(crate) mod hydrate;
pub(crate) mod run_turn;
