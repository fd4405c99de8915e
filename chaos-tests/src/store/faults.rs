//! Faults between a caller and the database, drawn from a seed.

use std::time::Duration;

use outlast_storage::Error;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

use super::unavailable;

/// How often each fault occurs, in thousandths of the calls. None by default.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Calls that are not done and reported as failed.
    pub lost: u32,
    /// Changes that are done and reported as failed.
    pub answers_lost: u32,
    /// Changes that are delayed, before and after they are done. Their inbox rows are numbered when the change begins, so they
    /// become visible out of order; with `delay_max` beyond the lease, commits come after its end.
    pub delayed: u32,
    /// Reads whose answer is delayed, and old when it arrives.
    pub old_reads: u32,
    /// The longest delay.
    pub delay_max: Duration,
}

/// How often each fault has occurred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Calls that were not done.
    pub lost: u64,
    /// Changes that were done and reported as failed.
    pub answers_lost: u64,
    /// Changes that were delayed.
    pub delayed: u64,
    /// Reads that were answered late.
    pub old_reads: u64,
}

/// What becomes of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Plain,
    Lost,
    AnswerLost,
    Delayed { before: Duration, after: Duration },
}

/// Draws the faults.
pub(super) struct Injector {
    random: ChaCha8Rng,
    pub(super) faults: Faults,
    pub(super) hits: Hits,
}

impl Injector {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        Self { random: ChaCha8Rng::seed_from_u64(seed), faults, hits: Hits::default() }
    }

    pub(super) fn of_change(&mut self) -> Fate {
        // One draw decides, so that faults exclude each other.
        let drawn = self.thousandth();
        let lost = self.faults.lost;
        let answers_lost = lost + self.faults.answers_lost;
        let delayed = answers_lost + self.faults.delayed;
        if drawn < lost {
            self.hits.lost += 1;
            Fate::Lost
        } else if drawn < answers_lost {
            self.hits.answers_lost += 1;
            Fate::AnswerLost
        } else if drawn < delayed {
            self.hits.delayed += 1;
            Fate::Delayed { before: self.delay(), after: self.delay() }
        } else {
            Fate::Plain
        }
    }

    /// How late a read is answered; an error when it is lost.
    pub(super) fn of_read(&mut self) -> Result<Option<Duration>, Error> {
        let drawn = self.thousandth();
        if drawn < self.faults.lost {
            self.hits.lost += 1;
            return Err(unavailable("the request was lost"));
        }
        if drawn >= self.faults.lost + self.faults.old_reads {
            return Ok(None);
        }
        self.hits.old_reads += 1;
        Ok(Some(self.delay()))
    }

    fn thousandth(&mut self) -> u32 {
        self.random.next_u32() % 1_000
    }

    fn delay(&mut self) -> Duration {
        let max = u64::try_from(self.faults.delay_max.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.random.next_u64() % max)
    }
}
