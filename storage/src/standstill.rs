//! Each way in which an instance can stand still without waiting for what its code has asked for. `problems` lists all of them:
//! some are seen in the store, the others are reported by the nodes that meet them. ARCHITECTURE.md tells who finds what.

use std::fmt;

/// Why something stands still. As text it is the reason of a problem: no moments and no counts, so that nodes that report the
/// same are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standstill {
    /// No live node has any orchestration.
    NoNode,
    /// The shard has no owner that lives, though there are nodes that could take it.
    NoOwner,
    /// Somebody has paused it.
    Paused,
    /// No worker takes the tag; `None` are activities without one.
    NoWorker(Option<String>),
    /// Workers take the tag, and none of them has the activity.
    NoActivity {
        /// Its tag.
        tag: Option<String>,
        /// Its name.
        activity: String,
    },
    /// What is stored cannot be read, or cannot be written to. The text says why.
    Damaged(String),
    /// Its turns fail again and again. The text says how.
    TurnsFail(String),
    /// The code of the orchestration does not come back from a poll.
    CodeBlocks,
    /// All instances in memory are busy, and there is room for no more.
    NoRoom,
    /// The broker does not take activities. The text says why.
    BrokerRefuses(String),
    /// Something keeps the broker from its work. The text says what, and what to do.
    BrokerTrouble(String),
    /// The store takes long for a commit.
    CommitTakesLong,
    /// No owner takes the result of an activity that has ended.
    ResultNotTaken(String),
    /// All slots of a worker have been taken for a while by the same activities, and others wait.
    SlotsTaken {
        /// The worker.
        worker: String,
        /// How many slots it has.
        slots: usize,
    },
    /// No slot of a worker is free, and some of them are taken by code that was told to stop and runs on.
    UnwantedRuns {
        /// The worker.
        worker: String,
        /// The activity that has run on for longest.
        activity: String,
        /// How many slots such code takes.
        unwanted: usize,
        /// How many slots the worker has.
        slots: usize,
    },
    /// A worker holds as many sessions as it may, all in use, and others wait.
    SessionsTaken {
        /// The worker.
        worker: String,
        /// How many sessions it may hold.
        sessions: usize,
    },
    /// A task of a node ends unasked. The text says which one and why.
    TaskFails {
        /// The node.
        node: String,
        /// What has happened.
        what: String,
    },
}

impl fmt::Display for Standstill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNode => f.write_str("no live node has any orchestration: start one that has registered this"),
            Self::NoOwner => {
                f.write_str("no live node holds the shard: one takes it when the lease of the last has ended")
            }
            Self::Paused => f.write_str("paused: resume_instance lets it go on"),
            Self::NoWorker(Some(tag)) => write!(f, "no worker takes the tag {tag:?}"),
            Self::NoWorker(None) => f.write_str("no worker takes activities without a tag"),
            Self::NoActivity { tag: Some(tag), activity } => {
                write!(f, "no worker with the tag {tag:?} has registered activity {activity}")
            }
            Self::NoActivity { tag: None, activity } => write!(f, "no worker has registered activity {activity}"),
            Self::Damaged(why) | Self::BrokerTrouble(why) => f.write_str(why),
            Self::TurnsFail(how) => write!(f, "its turns fail again and again: {how}"),
            Self::CodeBlocks => f.write_str(
                "the code of an orchestration has not come back for 5s: move what blocks it into an activity",
            ),
            Self::NoRoom => f.write_str("all instances in memory are busy: raise warm_instances_max or add nodes"),
            Self::BrokerRefuses(why) => write!(f, "the broker does not take activities: {why}"),
            Self::CommitTakesLong => f.write_str("the store has not answered a commit for seconds"),
            Self::ResultNotTaken(activity) => {
                write!(f, "the result of activity {activity} is not taken by an owner of its instance")
            }
            Self::SlotsTaken { worker, slots } => write!(
                f,
                "worker {worker}: no activity has ended on its {slots} slots for a while, and others wait: raise \
                 worker_concurrency or add workers"
            ),
            Self::UnwantedRuns { worker, activity, unwanted, slots } => write!(
                f,
                "worker {worker}: {unwanted} of its {slots} slots are taken by activities that were told to stop and run on, such as \
                 {activity}: let their code listen to `ActivityContext::cancelled`"
            ),
            Self::SessionsTaken { worker, sessions } => write!(
                f,
                "worker {worker}: all its {sessions} sessions are in use, and others wait: raise max_sessions_per_runtime \
                 or add workers"
            ),
            Self::TaskFails { node, what } => write!(f, "node {node}: {what}"),
        }
    }
}
