//! How long to wait before trying again.

use std::time::Duration;

/// Delay between the attempts of an activity.
#[derive(Clone, Debug, PartialEq)]
pub enum BackoffStrategy {
    /// No delay.
    None,
    /// The same delay every time.
    Fixed {
        /// The delay.
        delay: Duration,
    },
    /// `base × attempt`, at most `max`.
    Linear {
        /// Delay after the first attempt.
        base: Duration,
        /// Longest delay.
        max: Duration,
    },
    /// `base × multiplier^(attempt − 1)`, at most `max`.
    Exponential {
        /// Delay after the first attempt.
        base: Duration,
        /// Growth per attempt.
        multiplier: f64,
        /// Longest delay.
        max: Duration,
    },
}

impl Default for BackoffStrategy {
    fn default() -> Self {
        Self::Exponential { base: Duration::from_millis(100), multiplier: 2.0, max: Duration::from_secs(30) }
    }
}

impl BackoffStrategy {
    /// The delay after attempt `attempt` (from 1) has failed.
    pub fn delay_for_attempt(&self, attempt: u32) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Fixed { delay } => *delay,
            Self::Linear { base, max } => base.saturating_mul(attempt).min(*max),
            Self::Exponential { base, multiplier, max } => exponential(*base, *multiplier, attempt, *max),
        }
    }
}

/// How often an activity is tried, how long one attempt and all together may take, and how long to wait in between.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts in all, at least 1.
    pub max_attempts: u32,
    /// Longest time of one attempt; meeting it ends the whole at once.
    pub timeout: Option<Duration>,
    /// Longest time of all attempts and the delays between them; meeting it ends the whole at once.
    pub total_timeout: Option<Duration>,
    /// Delay between attempts.
    pub backoff: BackoffStrategy,
}

impl Default for RetryPolicy {
    /// Three attempts with the default backoff.
    fn default() -> Self {
        Self::new(3)
    }
}

impl RetryPolicy {
    /// `max_attempts` attempts with the default backoff: exponential from 100 ms, doubling, at most 30 s.
    ///
    /// # Panics
    /// When `max_attempts` is 0.
    pub fn new(max_attempts: u32) -> Self {
        assert!(max_attempts > 0, "a retry policy needs at least one attempt");
        Self { max_attempts, timeout: None, total_timeout: None, backoff: BackoffStrategy::default() }
    }

    /// Bounds the time of one attempt.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Bounds the time of all attempts together, with the delays between them.
    #[must_use]
    pub fn with_total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = Some(timeout);
        self
    }

    /// Sets the delay between attempts.
    #[must_use]
    pub fn with_backoff(mut self, backoff: BackoffStrategy) -> Self {
        self.backoff = backoff;
        self
    }

    /// The delay after attempt `attempt` (from 1) has failed.
    pub fn delay_for_attempt(&self, attempt: u32) -> Duration {
        self.backoff.delay_for_attempt(attempt)
    }
}

/// How long to wait for a handler that nobody has registered: `base × 2^n`, at most `max_delay`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnregisteredBackoffConfig {
    /// First delay (default 1 s).
    pub base_delay: Duration,
    /// Longest delay (default 60 s).
    pub max_delay: Duration,
}

impl Default for UnregisteredBackoffConfig {
    fn default() -> Self {
        Self { base_delay: Duration::from_secs(1), max_delay: Duration::from_secs(60) }
    }
}

impl UnregisteredBackoffConfig {
    /// The delay before attempt `attempt + 1`.
    pub fn delay(&self, attempt: u32) -> Duration {
        exponential(self.base_delay, 2.0, attempt, self.max_delay)
    }
}

fn exponential(base: Duration, multiplier: f64, attempt: u32, max: Duration) -> Duration {
    if base.is_zero() {
        return Duration::ZERO;
    }
    let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
    let seconds = base.as_secs_f64() * multiplier.powi(exponent);
    if seconds.is_finite() && seconds >= 0.0 && seconds < max.as_secs_f64() {
        Duration::from_secs_f64(seconds)
    } else {
        max
    }
}
