//! What has happened, line by line, on the simulation's clock.

use std::collections::VecDeque;
use std::fmt::Arguments;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Mutex;

use tokio::time::Instant;

use crate::lock::locked;

/// Lines that are kept when not all are.
const KEPT: usize = 200;

/// The lines of a run.
pub struct Trace {
    begun: Instant,
    keep_all: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    digest: DefaultHasher,
}

impl Trace {
    pub(super) fn new(keep_all: bool) -> Self {
        Self { begun: Instant::now(), keep_all, state: Mutex::default() }
    }

    pub(super) fn line(&self, what: Arguments<'_>) {
        let line = format!("{:>9.3} {what}", self.begun.elapsed().as_secs_f64());
        let mut state = locked(&self.state);
        state.digest.write(line.as_bytes());
        if !self.keep_all && state.lines.len() >= KEPT {
            state.lines.pop_front();
        }
        state.lines.push_back(line);
    }

    pub(super) fn elapsed(&self) -> std::time::Duration {
        self.begun.elapsed()
    }

    pub(super) fn digest(&self) -> u64 {
        locked(&self.state).digest.finish()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        locked(&self.state).lines.iter().cloned().collect()
    }
}
