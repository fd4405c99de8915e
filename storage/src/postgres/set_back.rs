//! Noticing that the database went back to an older state under programs that live: restored from a backup, or taken over by a standby
//! that had not received everything. What a node was told of a renewal is compared with what the next one finds.

use std::sync::PoisonError;
use std::time::Instant;

use outlast_core::NodeId;

use super::PostgresStore;

/// A node of this process.
pub(super) struct Joined {
    pub(super) id: NodeId,
    /// What it serves, so that one that was forgotten announces itself again.
    pub(super) handlers: String,
    told: Option<Told>,
    /// Noticed, and not reported yet.
    set_back: Option<String>,
}

/// What a renewal was told.
#[derive(Clone)]
pub(super) struct Told {
    /// When its lease ends, by the database's clock: only this node writes it, so it only rises.
    pub(super) lease_until: i64,
    /// The timeline of the database's log.
    pub(super) timeline: String,
    pub(super) heard: Instant,
}

impl PostgresStore {
    /// Notes what a node serves from now on.
    pub(super) fn note_joined(&self, id: &NodeId, handlers: &str) {
        let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        match joined.iter_mut().find(|node| node.id == *id) {
            Some(node) => handlers.clone_into(&mut node.handlers),
            None => {
                let (id, handlers) = (id.clone(), handlers.to_owned());
                joined.push(Joined { id, handlers, told: None, set_back: None });
            }
        }
    }

    /// What the last renewal was told. A renewal that is sent after this is asked finds at least that.
    pub(super) fn told(&self, node: &NodeId) -> Option<Told> {
        let joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        joined.iter().find(|other| other.id == *node)?.told.clone()
    }

    /// Compares what was `told` before a renewal was sent with what it found: `was` is the lease as it was stored before it.
    pub(super) fn note_told(&self, node: &NodeId, told: Option<Told>, was: Option<i64>, now: Told) {
        let set_back = told.and_then(|told| {
            if told.timeline != now.timeline {
                let (before, after) = (&told.timeline, &now.timeline);
                return Some(format!(
                    "its timeline was {before} and is {after}: it was restored, or a standby has taken over"
                ));
            }
            // A node that was silent for so long may have been forgotten; then others have taken its shards long since.
            let remembered = told.heard.elapsed() < self.lease * super::FORGET_AFTER_LEASES;
            let is_older = was.map_or(remembered, |was| was < told.lease_until);
            is_older.then(|| {
                "it does not know of a renewal that it has acknowledged: an older state was restored".to_owned()
            })
        });
        let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = joined.iter_mut().find(|other| other.id == *node) {
            // The last one and not the greatest: a clock that was set back makes leases end sooner, and nothing else is wrong.
            node.told = Some(now);
            if set_back.is_some() {
                node.set_back = set_back;
            }
        }
    }

    /// Why what this node remembers of the database is not to be trusted, once.
    pub(super) fn take_set_back(&self, node: &NodeId) -> Option<String> {
        let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        joined.iter_mut().find(|other| other.id == *node)?.set_back.take()
    }
}
