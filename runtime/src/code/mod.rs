//! What users' activity code sees: how it is registered, and what it can do and know while it runs.

pub(crate) mod activity;
pub(crate) mod context;
pub(crate) mod heartbeat;
