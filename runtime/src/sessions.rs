//! Which sessions this worker holds, how long ago it said so to the store, and since when they are idle.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use outlast_core::WorkerId;
use outlast_storage::SessionClaim;

use crate::worker::Worker;

/// A claim is renewed in the store at most so often.
const RENEW_EVERY_MAX: Duration = Duration::from_secs(60);

/// Sessions that this worker uses.
#[derive(Default)]
pub(crate) struct SessionUse {
    sessions: HashMap<String, Use>,
}

struct Use {
    running: usize,
    idle_since: Option<Instant>,
    claimed: Instant,
}

/// Whether an item of a session may run here.
pub(crate) enum Claim {
    /// The session is this worker's.
    Mine,
    /// It is that one's.
    Other(WorkerId),
    /// This worker has as many sessions as it may, or the store did not answer.
    Refused,
}

impl SessionUse {
    /// Counts one activity less.
    fn end(&mut self, session: &str) {
        if let Some(entry) = self.sessions.get_mut(session) {
            entry.running = entry.running.saturating_sub(1);
            if entry.running == 0 {
                entry.idle_since = Some(Instant::now());
            }
        }
    }

    /// Takes out the sessions without work for `idle`.
    fn take_idle(&mut self, idle: Duration) -> Vec<String> {
        let is_idle = |entry: &Use| entry.idle_since.is_some_and(|since| since.elapsed() >= idle);
        let taken = self.sessions.iter().filter(|(_, entry)| is_idle(entry)).map(|(session, _)| session.clone());
        let taken: Vec<String> = taken.collect();
        self.sessions.retain(|_, entry| !is_idle(entry));
        taken
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Counts one more running activity; `true` when the claim in the store need not be renewed for it.
    fn begin(&mut self, session: &str, renew_every: Duration) -> bool {
        let Some(entry) = self.sessions.get_mut(session) else {
            self.sessions.insert(session.to_owned(), Use { running: 1, idle_since: None, claimed: Instant::now() });
            return false;
        };
        entry.running += 1;
        entry.idle_since = None;
        let fresh = entry.claimed.elapsed() < renew_every;
        if !fresh {
            entry.claimed = Instant::now();
        }
        fresh
    }

    fn holds(&self, session: &str) -> bool {
        self.sessions.contains_key(session)
    }

    fn forget(&mut self, session: &str) {
        self.sessions.remove(session);
    }
}

impl Worker {
    /// Makes sure that this worker holds a session before an item of it runs.
    pub(crate) async fn claim(&self, session: &str) -> Claim {
        let idle = self.options.session_idle_timeout;
        {
            let mut sessions = self.lock_sessions();
            let in_store = self.broker.is_shared();
            if in_store && !sessions.holds(session) && sessions.len() >= self.options.max_sessions_per_runtime {
                return Claim::Refused;
            }
            if sessions.begin(session, RENEW_EVERY_MAX.min(idle / 4)) || !in_store {
                return Claim::Mine;
            }
        }
        let claim = self.store.claim_session(session, &self.id, idle).await;
        match claim {
            Ok(SessionClaim::Mine) => Claim::Mine,
            Ok(SessionClaim::Other(worker)) => {
                self.lock_sessions().forget(session);
                Claim::Other(worker)
            }
            Err(error) => {
                tracing::warn!(target: crate::observability::RUNTIME, session, %error, "session was not claimed");
                self.lock_sessions().forget(session);
                Claim::Refused
            }
        }
    }

    /// An activity of a session has ended here. A worker that leaves keeps no session for which nothing runs.
    pub(crate) async fn end_in_session(&self, session: &str) {
        self.lock_sessions().end(session);
        if self.draining.is_cancelled() {
            self.release_in_store(self.take_idle(Duration::ZERO)).await;
        }
    }

    /// Frees the sessions that have been idle for so long.
    pub(crate) async fn release_idle(&self, source: &mut dyn outlast_broker::WorkSource, idle: Duration) {
        let idle = self.take_idle(idle);
        idle.iter().for_each(|session| source.release_session(session));
        self.release_in_store(idle).await;
    }

    fn take_idle(&self, idle: Duration) -> Vec<String> {
        self.lock_sessions().take_idle(idle)
    }

    async fn release_in_store(&self, sessions: Vec<String>) {
        if !self.broker.is_shared() {
            return;
        }
        for session in sessions {
            if let Err(error) = self.store.release_session(&session, &self.id).await {
                tracing::warn!(target: crate::observability::RUNTIME, session, %error, "session stays claimed until it is idle");
            }
        }
    }
}
