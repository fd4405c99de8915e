//! Brings the turns of all instances of a node into few transactions: whatever arrived during the last commit is the next.
//! It has a thread of its own.

use std::sync::Arc;

use outlast_broker::Broker;
use outlast_storage::{FencedTurn, Store, TurnOutcome};
use tokio::sync::{mpsc, oneshot};

use crate::observability::RUNTIME;
use crate::own_thread::COMMITS;

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
}

impl Committer {
    /// Starts the task that commits; it ends when all handles are gone.
    pub(crate) fn start(store: Arc<dyn Store>, broker: Arc<dyn Broker>, group_max: usize) -> Self {
        let group_max = group_max.min(GROUP_MAX);
        let (requests, mut queue) = mpsc::channel::<Request>(group_max * 4);
        COMMITS.spawn(async move {
            let mut requests = Vec::with_capacity(group_max);
            while queue.recv_many(&mut requests, group_max).await > 0 {
                let (turns, answers): (Vec<_>, Vec<_>) = requests.drain(..).map(|r| (r.turn, r.answer)).unzip();
                commit_group((store.as_ref(), broker.as_ref()), turns, answers).await;
            }
        });
        Self { requests }
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
    (store, broker): (&dyn Store, &dyn Broker),
    turns: Vec<FencedTurn>,
    answers: Vec<oneshot::Sender<Committed>>,
) {
    let count = turns.len();
    let measured = crate::meter::Commit::begin(count);
    match store.commit(turns).await {
        Ok(reply) => {
            measured.done();
            for (answer, outcome) in answers.into_iter().zip(reply.outcomes) {
                // Told here: the actor and its whole executor may be gone, and what was sent waits for others.
                if let TurnOutcome::Committed { wakes } = &outcome {
                    wakes.iter().for_each(|wake| broker.nudge(wake.shard, wake.instance.clone()));
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
