//! Who is measured, on what, and how much of each workload.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::roles::Role;
use crate::workload::{Size, Workload};

/// What a peer keeps its state in; figures compare only within a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// A SQLite file.
    Sqlite,
    /// Postgres, with or without NATS.
    Postgres,
}

/// The peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// Outlast in one process on a SQLite file.
    OutlastSqlite,
    /// The duroxide crate on a SQLite file.
    DuroxideSqlite,
    /// Outlast as orchestrator, worker and client on Postgres and NATS.
    OutlastCluster,
    /// The duroxide crate on Postgres.
    DuroxidePg,
    /// The dbos crate on Postgres.
    Dbos,
    /// The same servers without any engine: what could be reached at all.
    Floor,
}

/// What is started for a peer.
pub(crate) enum Program {
    /// This program in a role that drives the workload, and further processes in theirs.
    Ours(Role, &'static [Role]),
    /// A program of the workspace in `bench/peers`.
    Theirs(PathBuf),
}

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OutlastSqlite => "outlast-sqlite",
            Self::DuroxideSqlite => "duroxide-sqlite",
            Self::OutlastCluster => "outlast-cluster",
            Self::DuroxidePg => "duroxide-pg",
            Self::Dbos => "dbos",
            Self::Floor => "floor",
        }
    }

    pub(crate) fn group(self) -> Group {
        match self {
            Self::OutlastSqlite | Self::DuroxideSqlite => Group::Sqlite,
            Self::OutlastCluster | Self::DuroxidePg | Self::Dbos | Self::Floor => Group::Postgres,
        }
    }

    /// Whether it is the one that the others of its group are compared with.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::OutlastSqlite | Self::OutlastCluster)
    }

    pub(crate) fn program(self) -> Program {
        match self {
            Self::OutlastSqlite => Program::Ours(Role::Sqlite, &[]),
            Self::OutlastCluster => Program::Ours(Role::Client, &[Role::Orchestrator, Role::Worker]),
            Self::Floor => Program::Ours(Role::Floor, &[]),
            Self::DuroxideSqlite | Self::DuroxidePg | Self::Dbos => {
                let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/target/release");
                Program::Theirs(built.join(self.name()))
            }
        }
    }

    pub(crate) fn is_built(self) -> bool {
        match self.program() {
            Program::Ours(..) => true,
            Program::Theirs(path) => path.exists(),
        }
    }

    /// The floor has no timers.
    pub(crate) fn runs(self, workload: Workload) -> bool {
        self != Self::Floor || workload != Workload::W6
    }

    /// How much is run where the command line is silent: enough for some seconds.
    pub(crate) fn size(self, workload: Workload) -> Size {
        let slow = matches!(self, Self::DuroxideSqlite | Self::DuroxidePg);
        let (n, inflight) = match workload {
            Workload::W1 if self == Self::DuroxideSqlite => (300, 256),
            Workload::W1 if self == Self::DuroxidePg => (1_000, 256),
            Workload::W1 if self == Self::Floor => (50_000, 256),
            Workload::W1 => (10_000, 256),
            Workload::W2 if slow => (150, 128),
            Workload::W2 if self == Self::Floor => (7_500, 128),
            Workload::W2 => (1_500, 128),
            Workload::W3 if slow => (2, 1),
            Workload::W3 if self == Self::Floor => (100, 1),
            Workload::W3 => (20, 1),
            Workload::W4 if slow => (100, 1),
            Workload::W4 => (1_000, 1),
            Workload::W5 if slow => (300, 1),
            Workload::W5 => (1_000, 1),
            Workload::W6 if slow => (200, 200),
            Workload::W6 => (2_000, 2_000),
        };
        Size { n, inflight }
    }
}
