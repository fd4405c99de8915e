//! Random bits: tokens of activities, seeds of executions, names of nodes.

/// 64 random bits: the hash of nothing under keys that the standard library draws from the system.
pub(crate) fn random_bits() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
