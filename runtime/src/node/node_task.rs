//! The long-lived tasks of a node, by name.

/// The long-lived tasks of a node. ARCHITECTURE.md says what each does and how its restart recovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NodeTask {
    ShardMessages,
    DueQueue,
    InboxSweep,
    Shares,
    TakeOver,
    Renewal,
    Commits,
    Dispatch,
    WaitingWork,
    LateWork,
    Offers,
    Problems,
    Departure,
    Worker,
}

impl NodeTask {
    #[cfg(feature = "telemetry")]
    pub(crate) const ALL: [Self; 14] = [
        Self::ShardMessages,
        Self::DueQueue,
        Self::InboxSweep,
        Self::Shares,
        Self::TakeOver,
        Self::Renewal,
        Self::Commits,
        Self::Dispatch,
        Self::WaitingWork,
        Self::LateWork,
        Self::Offers,
        Self::Problems,
        Self::Departure,
        Self::Worker,
    ];

    /// Its name in logs and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ShardMessages => "shard messages",
            Self::DueQueue => "due queue",
            Self::InboxSweep => "inbox sweep",
            Self::Shares => "shares",
            Self::TakeOver => "take-over",
            Self::Renewal => "renewal",
            Self::Commits => "commits",
            Self::Dispatch => "dispatch",
            Self::WaitingWork => "waiting work",
            Self::LateWork => "late work",
            Self::Offers => "offers",
            Self::Problems => "problems",
            Self::Departure => "departure",
            Self::Worker => "worker",
        }
    }

    /// Whether instances of the node's shards stand still without it.
    pub(crate) fn serves_shards(self) -> bool {
        match self {
            Self::ShardMessages
            | Self::DueQueue
            | Self::InboxSweep
            | Self::Shares
            | Self::TakeOver
            | Self::Renewal
            | Self::Commits
            | Self::Dispatch
            | Self::WaitingWork
            | Self::LateWork
            | Self::Offers => true,
            Self::Problems | Self::Departure | Self::Worker => false,
        }
    }
}
