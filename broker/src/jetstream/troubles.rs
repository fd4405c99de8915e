//! What is wrong at the broker and lasts: said once in the log, and kept for clients to list.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::Trouble;

/// What was not noted again for so long is over. Long enough to be reported by nodes that look every few seconds.
const KEPT_FOR: Duration = Duration::from_secs(15);

/// Troubles by what they are.
#[derive(Default)]
pub(crate) struct Troubles {
    noted: Mutex<BTreeMap<String, Noted>>,
}

struct Noted {
    since: Instant,
    last: Instant,
}

impl Troubles {
    /// Something is wrong at this moment; `reason` says what to do, and is the same each time.
    pub(crate) fn note(&self, reason: String) {
        let now = Instant::now();
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.retain(|_, noted| noted.last.elapsed() < KEPT_FOR);
        if !noted.contains_key(&reason) {
            tracing::warn!(target: super::LOG, "{reason}");
        }
        noted.entry(reason).or_insert(Noted { since: now, last: now }).last = now;
    }

    /// What was wrong lately.
    pub(crate) fn list(&self) -> Vec<Trouble> {
        let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = noted.iter().filter(|(_, noted)| noted.last.elapsed() < KEPT_FOR);
        lately.map(|(reason, noted)| Trouble { reason: reason.clone(), since: noted.since }).collect()
    }
}
