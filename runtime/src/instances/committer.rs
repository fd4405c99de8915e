//! Brings the turns of all instances of a node into few transactions: whatever arrived during the last commit is the next.
//! It has a thread of its own.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use outlast_broker::{Broker, ShardNotice};
use outlast_core::InstanceId;
use outlast_storage::{FencedTurn, Store, TurnOutcome};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::node::dedicated_thread::COMMITS;
use crate::node::node_task::NodeTask;
use crate::node::supervision::Supervisor;
use crate::telemetry::logging::RUNTIME;

/// What became of a turn, as its actor sees it.
#[derive(Debug)]
pub(crate) enum Committed {
    /// The store has answered.
    Outcome(TurnOutcome),
    /// Whether it was written is not known.
    Unknown,
}

/// Turns in one group at most, whatever the limit says.
const GROUP_MAX: usize = 16_384;

struct Request {
    turn: FencedTurn,
    answer: oneshot::Sender<Committed>,
}

/// Where actors hand in their turns.
#[derive(Clone)]
pub(crate) struct Committer {
    requests: mpsc::Sender<Request>,
    /// Since when a commit is under way, and of whom.
    under_way: Arc<std::sync::Mutex<Option<(InstanceId, Instant)>>>,
}

impl Committer {
    /// Starts the task that commits; it ends when all handles are gone.
    pub(crate) fn start(
        store: Arc<dyn Store>,
        broker: Arc<dyn Broker>,
        group_max: usize,
        supervisor: Arc<Supervisor>,
    ) -> Self {
        let group_max = group_max.min(GROUP_MAX);
        let (requests, queue) = mpsc::channel::<Request>(group_max * 4);
        let (queue, closed) = (Arc::new(Mutex::new(queue)), CancellationToken::new());
        let asked = closed.clone();
        let under_way = Arc::new(std::sync::Mutex::new(None));
        let noted = Arc::clone(&under_way);
        COMMITS.spawn(supervisor.keep(NodeTask::Commits, asked, move || {
            let (store, broker, queue) = (Arc::clone(&store), Arc::clone(&broker), Arc::clone(&queue));
            let (noted, closed) = (Arc::clone(&noted), closed.clone());
            async move {
                // Held for as long as the task runs: only its successor asks for it again.
                let mut queue = queue.lock().await;
                let mut requests = Vec::with_capacity(group_max);
                while queue.recv_many(&mut requests, group_max).await > 0 {
                    // A panic drops the answers: each actor takes its outcome for unknown and reads the store.
                    let (turns, answers): (Vec<_>, Vec<_>) = requests.drain(..).map(|r| (r.turn, r.answer)).unzip();
                    let note = |commit| *noted.lock().unwrap_or_else(PoisonError::into_inner) = commit;
                    note(turns.first().map(|turn: &FencedTurn| (turn.instance.clone(), Instant::now())));
                    commit_group(store.as_ref(), broker.as_ref(), turns, answers).await;
                    note(None);
                }
                closed.cancel();
            }
        }));
        Self { requests, under_way }
    }

    /// Whose commit is under way, with others, and for how long.
    pub(crate) fn under_way(&self) -> Option<(InstanceId, Duration)> {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.as_ref().map(|(instance, since)| (instance.clone(), since.elapsed()))
    }

    /// Commits one turn together with its neighbours.
    pub(crate) async fn commit(&self, turn: FencedTurn) -> Committed {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(Request { turn, answer }).await.is_err() {
            return Committed::Unknown;
        }
        answered.await.unwrap_or(Committed::Unknown)
    }
}

async fn commit_group(
    store: &dyn Store,
    broker: &dyn Broker,
    turns: Vec<FencedTurn>,
    answers: Vec<oneshot::Sender<Committed>>,
) {
    let count = turns.len();
    let measured = crate::telemetry::metrics::Commit::begin(count);
    match store.commit(turns).await {
        Ok(reply) => {
            measured.done();
            for (answer, outcome) in answers.into_iter().zip(reply.outcomes) {
                // Told here: the actor and its whole executor may be gone, and what was sent waits for others.
                if let TurnOutcome::Committed { wakes } = &outcome {
                    wakes.iter().for_each(|wake| broker.notify(wake.shard, ShardNotice::Nudge(wake.instance.clone())));
                }
                // An actor that is gone needs no answer.
                let _gone = answer.send(Committed::Outcome(outcome));
            }
        }
        Err(error) => {
            tracing::warn!(target: RUNTIME, turns = count, %error, "commit failed, its instances are read again");
            for answer in answers {
                let _gone = answer.send(Committed::Unknown);
            }
        }
    }
}
