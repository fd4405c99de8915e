//! The stores of Outlast behind one seam: turns, leases, calls and inspection.
//!
//! The runtime commits turns and holds leases through it, the client calls and inspects through it. A store never talks
//! to a broker and never decides anything about an instance.

mod arrival;
mod bulk;
mod error;
mod inspect;
mod seam;
mod standstill;
mod virtual_clock;

pub mod postgres;
pub mod sqlite;

pub use arrival::Arrival;
pub use error::Error;
pub use inspect::{
    DeleteInstanceResult, ExecutionInfo, InspectStore, InstanceFilter, InstanceInfo, InstanceTree, ListedStatus,
    ProblemRow, PruneOptions, PruneResult, QueueDepths, SystemMetrics, SystemStats,
};
pub use seam::{
    Arrivals, CallStore, CommitReply, DeleteOptions, Due, FencedTurn, HeartbeatOf, HeldShard, InboxCursor, LeaseStore,
    LeaseView, Loaded, Mailed, NodeInfo, Receipt, SendOptions, SessionClaim, Shortage, StartConflict, StartOutcome,
    StartReceipt, StartRequest, Store, TurnOutcome, TurnStore, Wake, WorkerInfo,
};
pub use standstill::Standstill;
pub use virtual_clock::VirtualClock;
