//! Clocks and figures.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// What one run of a workload came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) peer: String,
    pub(crate) workload: String,
    pub(crate) n: usize,
    /// Steps (W1, W4, W6: instances) per second.
    pub(crate) rate: f64,
    /// Start to result of one instance; W6: lateness.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// CPU seconds of the process for 1,000 steps.
    pub(crate) cpu_s_per_1000: f64,
    /// Median time of a durable write of 4 KiB on the same disk, at the time of the run.
    pub(crate) fsync_ms: f64,
    /// W5 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first_100_ms_per_step: Option<f64>,
    /// W5 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_100_ms_per_step: Option<f64>,
}

/// CPU time of this process so far, user and system.
pub(crate) fn cpu_seconds() -> anyhow::Result<f64> {
    // Fields 14 and 15 of proc_pid_stat(5), in clock ticks of 1/100 s; the name before them may hold blanks.
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let rest = stat.rsplit_once(')').context("a stat line has a name in parentheses")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| anyhow::Ok(fields.get(index).context("a stat line has 52 fields")?.parse::<f64>()?);
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

/// Median of 50 durable writes of 4 KiB.
pub(crate) fn fsync_ms(directory: &Path) -> anyhow::Result<f64> {
    let mut file = File::create(directory.join("fsync-probe"))?;
    let mut times = Vec::new();
    for _ in 0..50 {
        let begun = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    Ok(percentile(&mut times, 50))
}

/// In milliseconds.
pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// The machine's load, so that a reader can judge the figures.
pub(crate) fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg").map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
