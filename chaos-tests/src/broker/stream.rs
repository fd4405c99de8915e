//! What the stream of work holds. The queues themselves are those of the in-process broker, made anew when the stream is replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outlast_broker::Dispatch;
use outlast_broker::in_process::InProcessBroker;
use outlast_core::{ActivityRef, WorkerId};

#[derive(Default)]
pub(super) struct Stream {
    queues: Arc<InProcessBroker>,
    /// How often it was replaced.
    number: u64,
    /// Published and not acknowledged.
    live: BTreeMap<ActivityRef, Dispatch>,
    /// What was live when it was copied.
    copied: BTreeMap<ActivityRef, Dispatch>,
    /// Workers that take from the queues.
    seated: BTreeSet<WorkerId>,
    /// Lost from the middle: the queues do not know it yet.
    doomed: BTreeSet<ActivityRef>,
}

impl Stream {
    pub(super) fn broker(&self) -> Arc<InProcessBroker> {
        Arc::clone(&self.queues)
    }

    pub(super) fn describe(&self) -> Vec<String> {
        let describe = |dispatch: &Dispatch| {
            let Dispatch { item, worker, again } = dispatch;
            let (tag, session) = (&item.tag, &item.session_id);
            format!("{} (tag {tag:?}, session {session:?}, worker {worker:?}, again {again})", item.idempotency_key())
        };
        self.live.values().map(describe).collect()
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Takes note of an item; returns the queues that it goes to.
    pub(super) fn put(&mut self, dispatch: Dispatch) -> Arc<InProcessBroker> {
        let activity = dispatch.item.activity();
        self.doomed.remove(&activity);
        self.live.insert(activity, dispatch);
        self.broker()
    }

    pub(super) fn sit_down(&mut self, worker: &WorkerId) {
        self.seated.insert(worker.clone());
    }

    pub(super) fn stand_up(&mut self, worker: &WorkerId) {
        self.seated.remove(worker);
    }

    pub(super) fn is_seated(&self, worker: &WorkerId) -> bool {
        self.seated.contains(worker)
    }

    pub(super) fn take_out(&mut self, activity: &ActivityRef) -> Arc<InProcessBroker> {
        self.live.remove(activity);
        self.broker()
    }

    pub(super) fn copy(&mut self) {
        self.copied = self.live.clone();
    }

    /// Another stream takes its place, with what was copied or with nothing. Returns what it holds, and what is lost.
    pub(super) fn replace(&mut self, with_copy: bool) -> (Vec<Dispatch>, Vec<ActivityRef>) {
        self.number += 1;
        self.queues = Arc::default();
        self.doomed.clear();
        self.seated.clear();
        let before = std::mem::take(&mut self.live);
        if with_copy {
            self.live = self.copied.clone();
        }
        let lost = before.into_keys().filter(|activity| !self.live.contains_key(activity)).collect();
        (self.live.values().cloned().collect(), lost)
    }

    /// Loses some of what it holds; returns how much.
    pub(super) fn doom(&mut self, mut is_lost: impl FnMut() -> bool) -> usize {
        let doomed: Vec<ActivityRef> = self.live.keys().filter(|_| is_lost()).cloned().collect();
        for activity in &doomed {
            self.live.remove(activity);
        }
        let count = doomed.len();
        self.doomed.extend(doomed);
        count
    }

    /// Whether an item that the queues hand out was lost meanwhile.
    pub(super) fn is_doomed(&mut self, activity: &ActivityRef) -> bool {
        self.doomed.remove(activity)
    }
}
