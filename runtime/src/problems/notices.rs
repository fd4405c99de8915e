//! Limits log lines about missing code and other problems: the first is written at once, and few follow, however many instances
//! wait for the same.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A notice is not repeated within this time: whoever reads a log sees it, and it does not fill the log.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Most different notices within that time; further ones are not written. The list of problems has all of them.
const NOTICES_MAX: usize = 32;

/// The notices written lately.
#[derive(Default)]
pub(crate) struct Notices {
    said: Mutex<BTreeMap<String, Instant>>,
}

impl Notices {
    /// Whether to write a line about this now; if so, it counts as written.
    pub(crate) fn is_due(&self, about: &str) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.get(about).is_some_and(|at| at.elapsed() < AGAIN_AFTER) {
            return false;
        }
        said.retain(|_, at| at.elapsed() < AGAIN_AFTER);
        if said.len() >= NOTICES_MAX {
            return false;
        }
        said.insert(about.to_owned(), Instant::now());
        true
    }
}

/// The text for an activity that no worker has, in logs and in `list_problems`.
pub(crate) fn no_worker_has(activity: &str) -> String {
    format!("no worker has registered activity {activity}")
}

#[cfg(test)]
mod tests {
    use super::{NOTICES_MAX, Notices};

    #[test]
    fn each_notice_is_due_once_and_all_together_are_bounded() {
        let notices = Notices::default();
        let due = |name: &str| notices.is_due(name);
        assert!(due("a") && !due("a"));
        let many = (1..NOTICES_MAX * 3).filter(|n| notices.is_due(&n.to_string())).count();
        assert_eq!(many, NOTICES_MAX - 1);
    }
}
