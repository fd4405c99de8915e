//! What is run, the same on every peer. Peers of the other workspace compile this file too.

use clap::ValueEnum;

/// Activities of one W3 instance.
pub(crate) const FAN_OUT: usize = 500;
/// Activities of one W2 instance.
pub(crate) const CHAIN: usize = 10;
/// The timer of W6.
pub(crate) const TIMER: std::time::Duration = std::time::Duration::from_secs(2);

/// The workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// One activity; orchestrations per second.
    W1,
    /// Ten activities in a row; steps per second.
    W2,
    /// Five hundred activities joined; activities per second.
    W3,
    /// W1 one at a time; latency.
    W4,
    /// A long history of activities in a row; milliseconds per step, first and last hundred.
    W5,
    /// Timers of two seconds; lateness.
    W6,
}

/// How much of a workload is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Instances; W5: steps.
    pub(crate) n: usize,
    /// Instances at once.
    pub(crate) inflight: usize,
}

impl Workload {
    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::W1 => "w1",
            Self::W2 => "w2",
            Self::W3 => "w3",
            Self::W4 => "w4",
            Self::W5 => "w5",
            Self::W6 => "w6",
        }
    }

    /// The name of the orchestration.
    pub(crate) fn orchestration(self) -> &'static str {
        match self {
            Self::W1 | Self::W2 | Self::W3 | Self::W5 | Self::W6 => self.name(),
            Self::W4 => "w1",
        }
    }

    pub(crate) fn instances(self, n: usize) -> usize {
        match self {
            Self::W1 | Self::W2 | Self::W3 | Self::W4 | Self::W6 => n,
            Self::W5 => 1,
        }
    }

    /// Durable steps of so many instances.
    pub(crate) fn steps(self, n: usize) -> usize {
        match self {
            Self::W1 | Self::W4 | Self::W5 | Self::W6 => n,
            Self::W2 => n * CHAIN,
            Self::W3 => n * FAN_OUT,
        }
    }
}
