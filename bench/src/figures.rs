//! What a measured program finds out itself. Peers of the other workspace compile this file too.

use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::workload::{Size, TIMER, Workload};

/// What one run of a workload came to, seen by its client.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) n: usize,
    /// Steps (W1, W4, W6: instances) per second.
    pub(crate) rate: f64,
    /// Start to result of one instance; W6: from the timer's due time to the result.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// W5 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first_100_ms_per_step: Option<f64>,
    /// W5 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_100_ms_per_step: Option<f64>,
    /// W6 only: from the start call to the result, less the timer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) from_start_p50_ms: Option<f64>,
    /// W6 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) from_start_p99_ms: Option<f64>,
}

/// One instance, seen by its client.
pub(crate) struct Seen {
    /// Start call to result.
    pub(crate) took: Duration,
    /// When the result was there.
    pub(crate) ended_us: u64,
    pub(crate) output: String,
}

impl Figures {
    pub(crate) fn of(workload: Workload, size: Size, elapsed: Duration, seen: &[Seen]) -> anyhow::Result<Self> {
        let mut took: Vec<Duration> = seen.iter().map(|seen| seen.took).collect();
        let mut figures = Self {
            n: size.n,
            rate: workload.steps(size.n) as f64 / elapsed.as_secs_f64(),
            p50_ms: percentile(&mut took, 50),
            p99_ms: percentile(&mut took, 99),
            ..Self::default()
        };
        match workload {
            Workload::W1 | Workload::W2 | Workload::W3 | Workload::W4 => {}
            Workload::W5 => {
                let marks: Vec<u64> =
                    seen[0].output.split(',').map(str::parse).collect::<Result<_, _>>().context("the output of w5")?;
                figures.first_100_ms_per_step = per_step(marks.get(..100));
                figures.last_100_ms_per_step =
                    per_step(marks.len().checked_sub(100).and_then(|from| marks.get(from..)));
            }
            Workload::W6 => {
                let mut late: Vec<Duration> = seen.iter().map(lateness).collect::<Result<_, _>>()?;
                let mut from_start: Vec<Duration> = took.iter().map(|took| took.saturating_sub(TIMER)).collect();
                (figures.p50_ms, figures.p99_ms) = (percentile(&mut late, 50), percentile(&mut late, 99));
                figures.from_start_p50_ms = Some(percentile(&mut from_start, 50));
                figures.from_start_p99_ms = Some(percentile(&mut from_start, 99));
            }
        }
        Ok(figures)
    }
}

/// From the moment at which the timer was due; the output of W6 is when it was asked for.
fn lateness(seen: &Seen) -> anyhow::Result<Duration> {
    let asked = Duration::from_micros(seen.output.parse().context("the output of w6")?);
    Ok(Duration::from_micros(seen.ended_us).saturating_sub(asked + TIMER))
}

fn per_step(marks: Option<&[u64]>) -> Option<f64> {
    let (first, last) = (marks?.first()?, marks?.last()?);
    Some(last.saturating_sub(*first) as f64 / 1e3 / (marks?.len() - 1) as f64)
}

/// In milliseconds.
pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}
