//! What the measuring program says on the command line.

use clap::Parser;

use crate::workload::{Size, Workload};

#[derive(Parser)]
pub(crate) struct Arguments {
    #[arg(long)]
    pub(crate) workload: Workload,
    #[arg(long)]
    n: usize,
    #[arg(long)]
    inflight: usize,
}

impl Arguments {
    pub(crate) fn size(&self) -> Size {
        Size { n: self.n, inflight: self.inflight }
    }
}
