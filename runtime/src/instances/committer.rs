//! Group commit for all instances of a node: the turns that arrive during one commit make up the next transaction.
//! It has a thread of its own.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use outlast_broker::ShardNotice;
use outlast_client::Surroundings;
use outlast_core::InstanceId;
use outlast_storage::{FencedTurn, Store, TurnOutcome, Wake};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::instances::announcement::{Announcement, Audience};
use crate::node::dedicated_thread::COMMITS;
use crate::node::node_task::NodeTask;
use crate::node::supervision::Supervisor;
use crate::telemetry::logging::RUNTIME;

/// What became of a turn, as its actor sees it.
#[derive(Debug)]
pub(crate) enum Committed {
    /// The store has answered.
    Outcome(TurnOutcome),
    /// The turn may or may not have been written.
    Unknown,
}

/// Most turns in one group, even if `group_max` is higher: the queue of requests has a slot for each, four times over.
const GROUP_MAX: usize = 16_384;

/// A turn that an actor hands in. Boxed on its way, as it passes through many hands.
pub(crate) struct Decided {
    pub(crate) turn: FencedTurn,
    pub(crate) announcement: Announcement,
}

struct Request {
    decided: Box<Decided>,
    answer: oneshot::Sender<Committed>,
}

/// Where actors hand in their turns.
#[derive(Clone)]
pub(crate) struct Committer {
    requests: mpsc::Sender<Request>,
    /// The first instance of the commit under way, and when it began.
    under_way: Arc<std::sync::Mutex<Option<(InstanceId, Instant)>>>,
}

impl Committer {
    /// Starts the task that commits; it ends when all handles are gone.
    pub(crate) fn start(
        store: Arc<dyn Store>,
        audience: Audience,
        group_max: usize,
        supervisor: Arc<Supervisor>,
        surroundings: &Surroundings,
    ) -> Self {
        let group_max = group_max.min(GROUP_MAX);
        let (requests, queue) = mpsc::channel::<Request>(group_max * 4);
        let under_way = Arc::new(std::sync::Mutex::new(None));
        let closed = CancellationToken::new();
        let (queue, noted) = (Mutex::new(queue), Arc::clone(&under_way));
        let commits = Arc::new(Commits { store, audience, group_max, queue, under_way: noted, closed });
        let asked = commits.closed.clone();
        COMMITS.spawn(surroundings, supervisor.keep(NodeTask::Commits, asked, move || Arc::clone(&commits).run()));
        Self { requests, under_way }
    }

    /// The first instance of the commit under way, and its duration so far.
    pub(crate) fn under_way(&self) -> Option<(InstanceId, Duration)> {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.as_ref().map(|(instance, since)| (instance.clone(), since.elapsed()))
    }

    /// Commits one turn together with its neighbours, and announces it once it is durable.
    pub(crate) async fn commit(&self, decided: Box<Decided>) -> Committed {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(Request { decided, answer }).await.is_err() {
            return Committed::Unknown;
        }
        // A request that is sent while the node stops may stay in the channel, and so does the answer's sender.
        tokio::select! {
            biased;
            answer = answered => answer.unwrap_or(Committed::Unknown),
            () = self.requests.closed() => Committed::Unknown,
        }
    }
}

/// What the task that commits works with.
struct Commits {
    store: Arc<dyn Store>,
    audience: Audience,
    group_max: usize,
    /// The task holds the lock for as long as it runs: only a restart of the task locks it again.
    queue: Mutex<mpsc::Receiver<Request>>,
    under_way: Arc<std::sync::Mutex<Option<(InstanceId, Instant)>>>,
    closed: CancellationToken,
}

/// A group whose commit is over, and the actors that wait for it. Without outcomes, it may or may not have been written.
struct Group {
    waiting: Vec<(Announcement, oneshot::Sender<Committed>)>,
    outcomes: Option<Vec<TurnOutcome>>,
}

impl Commits {
    async fn run(self: Arc<Self>) {
        let mut queue = self.queue.lock().await;
        let mut requests = Vec::with_capacity(self.group_max);
        let mut last = None;
        loop {
            // While a group is still to be announced, take only what is there: waiting for more would delay it.
            while last.is_some()
                && requests.len() < self.group_max
                && let Ok(request) = queue.try_recv()
            {
                requests.push(request);
            }
            if requests.is_empty() {
                self.show(last.take());
                if queue.recv_many(&mut requests, self.group_max).await == 0 {
                    break;
                }
            }
            // The store writes this group while the last one is announced. A panic here drops the answers: each actor then takes
            // its outcome for unknown and reads the store.
            let earlier = last.take();
            let (group, ()) = tokio::join!(biased; self.commit(&mut requests), async { self.show(earlier) });
            last = Some(group);
        }
        self.closed.cancel();
    }

    /// Commits what was handed in, in one group.
    async fn commit(&self, requests: &mut Vec<Request>) -> Group {
        let count = requests.len();
        let (mut turns, mut waiting) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for Request { decided, answer } in requests.drain(..) {
            let Decided { turn, announcement } = *decided;
            turns.push(turn);
            waiting.push((announcement, answer));
        }
        let note = |commit| *self.under_way.lock().unwrap_or_else(PoisonError::into_inner) = commit;
        note(turns.first().map(|turn: &FencedTurn| (turn.instance.clone(), Instant::now())));
        let measured = crate::telemetry::metrics::Commit::begin(count);
        let outcomes = match self.store.commit(turns).await {
            Ok(reply) => {
                measured.done();
                Some(reply.outcomes)
            }
            Err(error) => {
                tracing::warn!(target: RUNTIME, turns = count, %error, "commit failed, its instances are read again");
                None
            }
        };
        note(None);
        Group { waiting, outcomes }
    }

    /// Nudges the receivers of the turns' messages, announces the turns and answers their actors. Done here, since an actor and
    /// its whole executor may be gone while others wait for its turn.
    fn show(&self, group: Option<Group>) {
        let Some(Group { waiting, outcomes }) = group else { return };
        let known = outcomes.into_iter().flatten().map(Committed::Outcome);
        let outcomes = known.chain(std::iter::repeat_with(|| Committed::Unknown));
        for ((announcement, answer), outcome) in waiting.into_iter().zip(outcomes) {
            if let Committed::Outcome(TurnOutcome::Committed { wakes }) = &outcome {
                let nudge =
                    |wake: &Wake| self.audience.broker.notify(wake.shard, ShardNotice::Nudge(wake.instance.clone()));
                wakes.iter().for_each(nudge);
                announcement.make(&self.audience);
            }
            // An actor that is gone needs no answer.
            let _gone = answer.send(outcome);
        }
    }
}
