//! What goes wrong with what a broker carries, drawn from a seed.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

/// How often what goes wrong, in thousandths of what is carried. Nothing by default.
#[derive(Clone, Debug, Default)]
pub struct BrokerFaults {
    /// Items, notices, requests, answers and updates that are lost although they were taken.
    pub lost: u32,
    /// Items that are refused; everything else of these is lost.
    pub refused: u32,
    /// What arrives twice.
    pub doubled: u32,
    /// What arrives later, and so behind what was sent after it.
    pub delayed: u32,
    /// How much later at most.
    pub delay_max: Duration,
}

/// How often what has gone wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BrokerHits {
    /// What was lost on its way.
    pub lost: u64,
    /// What was refused.
    pub refused: u64,
    /// What came twice.
    pub doubled: u64,
    /// What came later.
    pub delayed: u64,
    /// How often the whole stream was replaced.
    pub replaced: u64,
    /// Items that a stream has lost.
    pub items_lost: u64,
}

/// What becomes of something on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Plain,
    Lost,
    Refused,
    Doubled,
    Delayed(Duration),
}

/// Draws what goes wrong.
pub(super) struct Injector {
    random: ChaCha8Rng,
    pub(super) faults: BrokerFaults,
    pub(super) hits: BrokerHits,
}

impl Injector {
    pub(super) fn new(seed: u64) -> Self {
        let (random, faults, hits) = (ChaCha8Rng::seed_from_u64(seed), BrokerFaults::default(), BrokerHits::default());
        Self { random, faults, hits }
    }

    pub(super) fn fate(&mut self) -> Fate {
        // One draw decides, so that faults exclude each other.
        let drawn = self.thousandth();
        let BrokerFaults { lost, refused, doubled, delayed, delay_max } = self.faults;
        if drawn < lost {
            self.hits.lost += 1;
            Fate::Lost
        } else if drawn < lost + refused {
            self.hits.refused += 1;
            Fate::Refused
        } else if drawn < lost + refused + doubled {
            self.hits.doubled += 1;
            Fate::Doubled
        } else if drawn < lost + refused + doubled + delayed {
            self.hits.delayed += 1;
            Fate::Delayed(self.within(delay_max))
        } else {
            Fate::Plain
        }
    }

    pub(super) fn thousandth(&mut self) -> u32 {
        self.random.next_u32() % 1_000
    }

    pub(super) fn within(&mut self, max: Duration) -> Duration {
        let max = u64::try_from(max.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.random.next_u64() % max)
    }
}
