//! What is run, the same on every peer.

use clap::ValueEnum;

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
    /// Timers of two seconds; lateness of the whole instance.
    W6,
}

/// What the command line says about size.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Size {
    pub(crate) n: Option<usize>,
    pub(crate) inflight: Option<usize>,
}

impl Workload {
    pub(crate) const ALL: [Self; 6] = [Self::W1, Self::W2, Self::W3, Self::W4, Self::W5, Self::W6];

    /// The name of the orchestration and of the column.
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

    /// Instances (W5: steps) and how many at once, where the command line is silent.
    pub(crate) fn size(self, size: Size) -> (usize, usize) {
        let (n, inflight) = match self {
            Self::W1 => (10_000, 256),
            Self::W2 => (1_500, 128),
            Self::W3 => (20, 1),
            Self::W4 => (1_000, 1),
            Self::W5 => (1_000, 1),
            Self::W6 => (2_000, 2_000),
        };
        (size.n.unwrap_or(n), size.inflight.unwrap_or(inflight))
    }

    /// Durable steps in one instance of so many.
    pub(crate) fn steps(self, n: usize) -> usize {
        match self {
            Self::W1 | Self::W4 | Self::W6 => n,
            Self::W2 => n * 10,
            Self::W3 => n * 500,
            Self::W5 => n,
        }
    }
}
