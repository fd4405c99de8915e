//! Which shards this node holds and until when, and the duties that come with them.

pub(crate) mod tenure;

pub(crate) mod neighbours;
pub(crate) mod owner;

pub(crate) mod membership;
pub(crate) mod renewal;
pub(crate) mod take_over;

pub(crate) mod due_times;
pub(crate) mod inbox_sweep;
pub(crate) mod messages;
pub(crate) mod questions;
