//! Goal: the simulated store answers as the real ones do, so what a simulation finds is true of them.
//! Method: random sequences of calls on all seams, the same ones on the simulated store and on a real one. After each call the
//! answers are compared, and then all that can be read. What differs is made as small as it can be and printed.
//!
//! Left out of the comparison is what the seam leaves open: moments of the store's clock, numbers of inbox rows, texts of
//! refusals, and in what order the turns of one group are written.

mod sequence;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use outlast_core::{
    ActivityKey, ActivityTimeouts, EventId, EventKind, ExecutionId, Expected, Fork, HistoryEvent, InstanceId,
    InstanceState, InstanceStatus, KvChange, KvEntry, Message, MessageId, MessageKind, Millis, NodeId, OutboundMessage,
    ParentLink, ShardId, StartMessage, Token, Turn, WorkerId,
};
use outlast_storage::sqlite::SqliteStore;
use outlast_storage::{
    DeleteOptions, Error, FencedTurn, HeartbeatOf, InboxCursor, InstanceFilter, ListedStatus, PruneOptions,
    SendOptions, StartRequest, Store, TurnOutcome,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

use sequence::{Call, Deed, Does, IDS, Sent, Spoilt, call};

use crate::fixture::{Database, LEASE, Owner, id, join, raise, simulated};

/// The node that commits, as the fixture calls it.
const OWNER: &str = "owner";
/// Another node, which holds shards now and then.
const OTHER: &str = "other";

#[tokio::test(flavor = "multi_thread")]
async fn the_simulated_store_answers_as_sqlite_does() {
    compare(96, 60, async || SqliteStore::open_in_memory().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_simulated_store_answers_as_postgres_does() {
    let mut database = Database::new();
    // As long as that of the simulated store: nobody renews while a case runs.
    database.options.lease = LEASE;
    compare(12, 30, async || database.connect().await);
    database.drop_schema().await;
}

/// Runs as many cases of at most so many calls.
fn compare<S: Store>(cases: u32, calls: usize, open: impl AsyncFn() -> S) {
    // The same cases in every run, so that a failure is one of the change at hand; others with another seed in the environment.
    let seed = std::env::var("PROPTEST_RNG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        max_shrink_iters: 400,
        ..ProptestConfig::default()
    };
    tokio::task::block_in_place(|| {
        let run = |calls: Vec<Call>| {
            tokio::runtime::Handle::current().block_on(async {
                let (real, simulated) = (open().await, simulated());
                clear(&real).await;
                let (mut real, mut simulated) = (Side::new(&real).await, Side::new(&simulated).await);
                for (number, call) in calls.iter().enumerate() {
                    let (expected, found) =
                        (real.carry_out(number, call).await, simulated.carry_out(number, call).await);
                    prop_assert_eq!(found, expected, "answers to call {}, {:?}", number, call);
                    for (expected, found) in real.seen().await.into_iter().zip(simulated.seen().await) {
                        prop_assert_eq!(found, expected, "what can be read after call {}, {:?}", number, call);
                    }
                }
                Ok(())
            })
        };
        if let Err(failure) = TestRunner::new(config).run(&vec(call(), 1..calls), run) {
            panic!("PROPTEST_RNG_SEED={seed}: {failure}");
        }
    });
}

/// A real database outlives a case, and the nodes of the last one hold its shards.
async fn clear(store: &dyn Store) {
    for node in [OWNER, OTHER] {
        store.leave(&NodeId::new(node)).await.unwrap();
    }
    for id in store.list(None).await.unwrap() {
        match store.delete(&InstanceId::new(id), DeleteOptions::first_try(true)).await {
            // Gone with its parent, or to go with it.
            Ok(_) | Err(Error::InstanceNotFound(_) | Error::CannotDeleteSubOrchestration(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// A store with what its owner knows.
struct Side<'a> {
    store: &'a dyn Store,
    owner: Owner,
    other: NodeId,
    all: Vec<ShardId>,
}

impl<'a> Side<'a> {
    async fn new(store: &'a dyn Store) -> Self {
        let owner = Owner::of_all(store).await;
        let other = join(store, OTHER).await;
        Self { store, owner, other, all: (0..store.shards()).map(ShardId).collect() }
    }

    /// What the store answers, as text.
    async fn carry_out(&mut self, number: usize, call: &Call) -> String {
        let store = self.store;
        match call {
            Call::Start { id, orchestration, message, on_conflict } => {
                let name = if *orchestration { "orchestration" } else { "another" };
                let message = Message { id: MessageId::new(format!("m{message}")), kind: start_of(name, None) };
                let request = StartRequest { instance: instance(*id), message, on_conflict: *on_conflict };
                let started = store.start(request).await;
                said(started.map(|receipt| (receipt.shard, receipt.outcome, receipt.seq.is_some())))
            }
            Call::Send { id, message, is_repeated } => {
                let options = SendOptions { queue_messages_max: 2, first_tried: first_tried(*is_repeated) };
                said(store.send(&instance(*id), sent(message), options).await)
            }
            Call::SaveHeartbeat { id, number, is_of_this_life } => self.beat(*id, *number, *is_of_this_life).await,
            Call::Import { id } => said(store.import(&instance(*id), copy(number)).await),
            Call::Delete { id, force, is_repeated } => {
                let options = DeleteOptions { force: *force, first_tried: first_tried(*is_repeated) };
                said(store.delete(&instance(*id), options).await)
            }
            Call::DeleteBulk { named, before, limit } => said(store.delete_bulk(filter(*named, *before, *limit)).await),
            Call::Prune { id, options } => said(store.prune(&instance(*id), prune_options(*options)).await),
            Call::PruneBulk { named, options, limit } => {
                said(store.prune_bulk(filter(*named, None, *limit), prune_options(*options)).await)
            }
            Call::Turns(deeds) => self.commit(number, deeds).await,
            Call::Hand { shard_of, to_other } => self.hand(*shard_of, *to_other).await,
            Call::Session { session, other, release } => {
                let worker = WorkerId::new(if *other { self.other.as_str() } else { self.owner.node.as_str() });
                let session = if *session { "s" } else { "t" };
                if *release {
                    return said(store.release_sessions(&worker, Some(session)).await);
                }
                said(store.claim_session(session, &worker, Duration::from_secs(600)).await)
            }
        }
    }

    async fn beat(&self, id: usize, number: usize, is_of_this_life: bool) -> String {
        let loaded = self.store.load(&instance(id)).await.unwrap();
        let execution = loaded.as_ref().map_or(ExecutionId(1), |loaded| loaded.state.execution);
        let history = loaded.map(|loaded| loaded.history).unwrap_or_default();
        let is_scheduled = |event: &&HistoryEvent| matches!(event.kind, EventKind::ActivityScheduled { .. });
        let scheduled: Vec<&HistoryEvent> = history.iter().filter(is_scheduled).collect();
        let (event, at) = match scheduled.get(number % scheduled.len().max(1)) {
            Some(event) if is_of_this_life => (event.event_id, event.at),
            Some(event) => (event.event_id, Millis(7)),
            None => (EventId(1), Millis(7)),
        };
        let key = ActivityKey { instance: instance(id), execution, event };
        let of = HeartbeatOf { key: &key, scheduled_at: at, activity: &activity(event) };
        said(self.store.save_heartbeat(of, format!("at {execution}")).await)
    }

    /// Gives a shard to the other node and back: who is fenced by that has an older epoch.
    async fn hand(&mut self, shard_of: usize, to_other: bool) -> String {
        let shard = ShardId::of(&instance(shard_of), self.store.shards());
        let (from, to) = if to_other { (&self.owner.node, &self.other) } else { (&self.other, &self.owner.node) };
        self.store.release(from, &[shard]).await.unwrap();
        let taken = self.store.acquire(to, &[shard]).await.unwrap();
        for held in &taken {
            let known = self.owner.held.iter_mut().find(|known| known.shard == shard);
            if let Some(known) = known.filter(|_| !to_other) {
                known.epoch = held.epoch;
            }
        }
        format!("{} taken", taken.len())
    }

    async fn commit(&self, number: usize, deeds: &[Deed]) -> String {
        // Turns of one group have no order among each other, so none here touches what another does.
        let (mut group, mut touched) = (Vec::new(), BTreeSet::new());
        for deed in deeds {
            let touches: BTreeSet<usize> = deed.tells.map(|(to, _)| to).into_iter().chain([deed.id]).collect();
            if touches.is_disjoint(&touched) {
                touched.extend(touches);
                group.extend(self.decide(number, deed).await);
            }
        }
        let outcome = |outcome: TurnOutcome| match outcome {
            TurnOutcome::Committed { wakes } => {
                let woken: BTreeSet<String> = wakes.iter().map(|wake| format!("{wake:?}")).collect();
                format!("committed, wakes {woken:?}")
            }
            TurnOutcome::Conflict => "conflict".to_owned(),
            TurnOutcome::Fenced => "fenced".to_owned(),
            TurnOutcome::Refused(_) => "refused".to_owned(),
        };
        let reply = self.store.commit(group).await;
        said(reply.map(|reply| reply.outcomes.into_iter().map(outcome).collect::<Vec<_>>()))
    }

    async fn decide(&self, number: usize, deed: &Deed) -> Option<FencedTurn> {
        let loaded = self.store.load(&instance(deed.id)).await.unwrap()?;
        let before = loaded.state.clone();
        let expected = Expected { execution: before.execution, last_event_id: before.last_event_id };
        let rows = loaded.inbox.iter().take(deed.consumed);
        let mut turn = Turn { expected, state: before.clone(), ..Turn::default() };
        turn.consumed = rows.clone().filter_map(|row| row.seq).collect();
        if before.status == InstanceStatus::Running {
            let mut draft = Draft { turn: &mut turn, at: Millis(1_000 + number as u64) };
            for row in rows {
                draft.push(status(row.message.id.as_str())).message_id = Some(row.message.id.clone());
            }
            draft.act(deed, &loaded.history);
            draft.tell(number, deed, &instance(deed.id));
        }
        let mut epoch = self.owner.epoch(loaded.shard);
        match deed.spoilt {
            Some(Spoilt::Epoch) => epoch.0 -= 1,
            Some(Spoilt::Expected) => turn.expected.last_event_id.0 += 1,
            Some(Spoilt::EventTwice) => turn.events.extend(turn.events.last().cloned()),
            Some(Spoilt::RowTwice) => turn.consumed.extend(turn.consumed.last().copied()),
            Some(Spoilt::OutcomeBeforeItsCause) => {
                if let Some((_, event)) = turn.events.last_mut() {
                    event.source_event_id = Some(event.event_id.next());
                }
            }
            None => {}
        }
        let (instance, shard) = (instance(deed.id), loaded.shard);
        Some(FencedTurn { instance, shard, epoch, before, turn, move_to: None, mailed: None })
    }

    /// All that can be read, but for moments of the clock and numbers of rows.
    async fn seen(&self) -> Vec<String> {
        let store = self.store;
        let mut seen = Vec::new();
        for name in IDS {
            let id = id(name);
            let loaded = store.load(&id).await.unwrap();
            let loaded = loaded.map(|loaded| {
                let inbox: Vec<Message> = loaded.inbox.into_iter().map(|row| row.message).collect();
                (loaded.shard, loaded.state, loaded.history, inbox)
            });
            let info = store.info(&id).await.unwrap().map(|mut info| {
                (info.created_at, info.updated_at) = (0, 0);
                info
            });
            let executions = store.executions(&id).await.unwrap();
            seen.push(format!("{name}: {loaded:?} {info:?} {executions:?}"));
            seen.push(format!(
                "{name}: {:?} {:?}",
                store.kv(&id, None).await.unwrap(),
                store.stats(&id).await.unwrap()
            ));
            for event in 1..8 {
                seen.push(format!("{name}: {:?}", store.heartbeat(&id, &activity(EventId(event))).await.unwrap()));
            }
            let tree = store.tree(&id).await.unwrap();
            seen.push(format!("{name}: {:?}", loaded.map(|_| tree)));
        }
        for status in [None, Some(ListedStatus::Running), Some(ListedStatus::Paused), Some(ListedStatus::Completed)] {
            let listed: BTreeSet<String> = store.list(status).await.unwrap().into_iter().collect();
            seen.push(format!("{status:?}: {listed:?}"));
        }
        seen.push(format!("{:?}", store.metrics().await.unwrap()));
        let due = store.due(&self.all, Millis(30), 100).await.unwrap();
        let due: BTreeSet<String> = due.iter().map(|due| format!("{due:?}")).collect();
        let arrivals = store.arrivals(&self.all, InboxCursor::default(), 100).await.unwrap();
        let receivers: BTreeSet<String> = arrivals.receivers.iter().map(|wake| format!("{wake:?}")).collect();
        seen.push(format!("due {due:?}, then {:?}", store.next_due(&self.all, Millis(30)).await.unwrap()));
        seen.push(format!("{receivers:?} {:?}", store.pending(&self.all, None, 100).await.unwrap()));
        let view = store.renew(&self.owner.node).await.unwrap();
        let held: Vec<ShardId> = view.held.iter().map(|held| held.shard).collect();
        seen.push(format!("{:?} {:?} {held:?}", view.nodes, view.owners));
        seen.push(format!("{:?}", store.session_owners(&["s".to_owned(), "t".to_owned()]).await.unwrap()));
        seen
    }
}

/// A turn that is being put together.
struct Draft<'a> {
    turn: &'a mut Turn,
    at: Millis,
}

impl Draft<'_> {
    fn push(&mut self, kind: EventKind) -> &mut HistoryEvent {
        let state = &mut self.turn.state;
        state.last_event_id = state.last_event_id.next();
        let (execution, event_id) = (state.execution, state.last_event_id);
        let event = HistoryEvent { event_id, source_event_id: None, message_id: None, at: self.at, kind };
        self.turn.events.push((execution, event));
        &mut self.turn.events.last_mut().expect("it was pushed").1
    }

    fn act(&mut self, deed: &Deed, history: &[HistoryEvent]) {
        let state = &mut self.turn.state;
        state.version = "1.0.0".to_owned();
        state.wake_at = deed.wake.map(Millis);
        state.pending = deed.pending;
        state.paused = deed.paused;
        match deed.does {
            Does::Nothing => {}
            Does::Schedules => drop(self.push(scheduled()).event_id),
            Does::Completes => {
                let has_outcome = |event: EventId| history.iter().any(|other| other.source_event_id == Some(event));
                let is_scheduled = |event: &&HistoryEvent| matches!(event.kind, EventKind::ActivityScheduled { .. });
                let open = history.iter().filter(is_scheduled).map(|event| event.event_id);
                if let Some(open) = open.rev().find(|event| !has_outcome(*event)) {
                    let done = EventKind::ActivityCompleted { result: "done".to_owned(), run: None };
                    self.push(done).source_event_id = Some(open);
                    self.turn.heartbeats = vec![activity(open)];
                }
            }
            Does::SetsValue(key) => {
                let entry =
                    KvEntry { key: format!("k{key}"), value: self.at.0.to_string(), last_updated_at_ms: self.at.0 };
                self.turn.kv = vec![KvChange::Set(entry), KvChange::Clear(format!("k{}", key + 1))];
            }
            Does::ClearsValues => self.turn.kv = vec![KvChange::ClearAll],
            Does::ContinuesAsNew => {
                self.push(EventKind::OrchestrationContinuedAsNew { input: "next".to_owned() });
                let state = &mut self.turn.state;
                (state.execution, state.last_event_id) = (state.execution.next(), EventId(0));
                self.push(status("begun anew"));
            }
            Does::Ends { fails } => {
                self.push(EventKind::OrchestrationCompleted { output: "out".to_owned() });
                let state = &mut self.turn.state;
                state.status = if fails { InstanceStatus::Failed } else { InstanceStatus::Completed };
                state.completed_at = Some(self.at);
                // A failure that cannot be read is shown as such by every store.
                state.output = Some("out".to_owned());
            }
        }
    }

    fn tell(&mut self, number: usize, deed: &Deed, sender: &InstanceId) {
        if let Some((to, starts)) = deed.tells {
            let execution = self.turn.state.execution;
            let event = self.turn.state.last_event_id;
            let link = ParentLink { instance: sender.clone(), execution, event, token: Token(event.0) };
            let kind = if starts {
                start_of("orchestration", Some(link))
            } else {
                MessageKind::Raise { name: "told".to_owned(), data: String::new() }
            };
            let message = Message { id: MessageId::new(format!("told {number} {}", deed.id)), kind };
            let when_taken = starts.then(|| raise(&format!("taken {number} {}", deed.id)));
            self.turn.outbound.push(OutboundMessage { to: instance(to), message, when_taken });
        }
        self.turn.held.extend(deed.holds.map(|message| raise(&format!("m{message}"))));
    }
}

/// Every instance of a sequence has begun since a call that is repeated was first made.
fn first_tried(is_repeated: bool) -> Option<Millis> {
    is_repeated.then_some(Millis(0))
}

fn instance(index: usize) -> InstanceId {
    id(IDS[index])
}

fn activity(event: EventId) -> String {
    format!("activity {event}")
}

fn start_of(name: &str, parent: Option<ParentLink>) -> MessageKind {
    let input = "in".to_owned();
    MessageKind::Start(StartMessage { name: name.to_owned(), version: None, input, parent, traceparent: None })
}

fn sent(message: &Sent) -> Message {
    let (number, kind) = match message {
        Sent::Raise(number) => (number, MessageKind::Raise { name: "event".to_owned(), data: "data".to_owned() }),
        Sent::Enqueue(number, queue) => {
            (number, MessageKind::Enqueue { queue: format!("queue {queue}"), data: "data".to_owned() })
        }
        Sent::Cancel(number) => (number, MessageKind::Cancel { child: None, reason: "enough".to_owned() }),
    };
    Message { id: MessageId::new(format!("m{number}")), kind }
}

fn status(text: &str) -> EventKind {
    EventKind::CustomStatusUpdated { status: Some(text.to_owned()) }
}

fn scheduled() -> EventKind {
    EventKind::ActivityScheduled {
        name: "Work".to_owned(),
        input: "in".to_owned(),
        session_id: None,
        tag: None,
        token: Token(7),
        attempt: 1,
        first_event_id: None,
        timeouts: ActivityTimeouts::default(),
    }
}

/// A beginning of another instance.
fn copy(number: usize) -> Fork {
    let at = Millis(1_000 + number as u64);
    let event = |id, kind| HistoryEvent { event_id: EventId(id), source_event_id: None, message_id: None, at, kind };
    let state =
        InstanceState { version: "1.0.0".to_owned(), last_event_id: EventId(2), ..InstanceState::begun("copied") };
    let kv = vec![KvEntry { key: "k".to_owned(), value: "v".to_owned(), last_updated_at_ms: at.0 }];
    Fork { state, history: vec![event(1, status("one")), event(2, scheduled())], kv }
}

fn filter(named: bool, completed_before: Option<u64>, limit: Option<u32>) -> InstanceFilter {
    let instance_ids = named.then(|| vec!["a".to_owned(), "c".to_owned(), "a".to_owned()]);
    InstanceFilter { instance_ids, completed_before, limit }
}

fn prune_options((keep_last, completed_before): (Option<u32>, Option<u64>)) -> PruneOptions {
    PruneOptions { keep_last, completed_before }
}

/// Answers are compared whole, errors by what the caller can do about them.
fn said<T: Debug>(answer: Result<T, Error>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        Err(Error::Unavailable(_)) => "unavailable".to_owned(),
        Err(Error::Unusable(_)) => "unusable".to_owned(),
        Err(Error::Forbidden(_)) => "forbidden".to_owned(),
        Err(
            error @ (Error::Corrupt { .. }
            | Error::InstanceNotFound(_)
            | Error::InstanceExists { .. }
            | Error::InstanceStillRunning(_)
            | Error::CannotDeleteSubOrchestration(_)
            | Error::QueueFull { .. }),
        ) => format!("{error:?}"),
    }
}
