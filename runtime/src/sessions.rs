//! Which sessions this worker uses, and since when they are idle.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Sessions in use, with the number of running activities and the last use.
#[derive(Default)]
pub(crate) struct SessionUse {
    sessions: HashMap<String, (usize, Option<Instant>)>,
}

impl SessionUse {
    pub(crate) fn begin(&mut self, session: &str) {
        let entry = self.sessions.entry(session.to_owned()).or_insert((0, None));
        entry.0 += 1;
        entry.1 = None;
    }

    pub(crate) fn end(&mut self, session: &str) {
        if let Some(entry) = self.sessions.get_mut(session) {
            entry.0 = entry.0.saturating_sub(1);
            if entry.0 == 0 {
                entry.1 = Some(Instant::now());
            }
        }
    }

    /// Takes out the sessions without work for `idle`.
    pub(crate) fn take_idle(&mut self, idle: Duration) -> Vec<String> {
        let is_idle = |since: &Option<Instant>| since.is_some_and(|since| since.elapsed() >= idle);
        let taken: Vec<String> =
            self.sessions.iter().filter(|(_, (_, since))| is_idle(since)).map(|(session, _)| session.clone()).collect();
        self.sessions.retain(|_, (_, since)| !is_idle(since));
        taken
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}
