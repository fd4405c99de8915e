//! Which shards this node holds and until when, and the duties that come with them.

pub(crate) mod membership;
pub(crate) mod owner;
pub(crate) mod renewal;
