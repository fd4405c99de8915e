//! Goal: whatever races a deletion, nothing that was sent to one life of an id is found in a later one, and nothing stays at rest.
//! Method: random steps on two roots and their children, each step one turn beside up to four calls. All that is written bears
//! the number of the step in which it was made; what an id holds must not be older than its life.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::join_all;
use outlast_core::{
    ActivityKey, ActivityTimeouts, EventId, EventKind, ExecutionId, Expected, HistoryEvent, InstanceId, InstanceStatus,
    KvChange, KvEntry, Message, MessageId, MessageKind, Millis, OutboundMessage, ParentLink, StartMessage, Token, Turn,
};
use outlast_storage::{
    DeleteOptions, Error, FencedTurn, HeartbeatOf, InboxCursor, Loaded, PruneOptions, SendOptions, StartConflict,
    StartOutcome, StartRequest, Store, TurnOutcome,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

use crate::fixture::{Owner, enqueue, event, id, on_every_store, raise, start_message};

const CASES: u32 = 24;
const ROOTS: usize = 2;
const BURST: usize = 5;

on_every_store!(nothing_outlives_its_life_in_any_interleaving);

/// What a call from outside does, to the root or (where that can be) the child of this number.
#[derive(Clone, Debug)]
enum Call {
    Start(usize, StartConflict),
    Raise(usize, bool),
    /// Several, one after the other: some of them meet a deletion.
    Enqueue(usize, bool),
    Cancel(usize, bool),
    /// A worker speaks for one of the activities that there ever were.
    Beat(usize),
    Delete(usize, bool),
    /// A forced deletion and, at once, the next life.
    Restart(usize),
    Prune(usize),
}

/// What a turn brings, beside the messages that wait.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Schedule,
    Outcome,
    StartChild,
    TellTheOther,
    End,
}

/// What the owner of an instance does; it has at most one turn of an instance in hand.
#[derive(Clone, Debug)]
enum OwnerStep {
    Decide(usize, bool, Deed),
    Commit(usize, bool),
    DecideAndCommit(usize, bool, Deed),
}

#[derive(Clone, Debug)]
struct Step {
    owner: Option<OwnerStep>,
    calls: Vec<Call>,
}

/// Mostly the same one, so that calls meet.
fn root() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(0), 1 => 1..ROOTS]
}

fn call() -> impl Strategy<Value = Call> {
    let conflict = prop_oneof![Just(StartConflict::UseExisting), Just(StartConflict::TerminateExisting)];
    let one = || (root(), any::<bool>());
    prop_oneof![
        5 => (root(), conflict).prop_map(|(root, conflict)| Call::Start(root, conflict)),
        2 => one().prop_map(|(root, child)| Call::Raise(root, child)),
        4 => one().prop_map(|(root, child)| Call::Enqueue(root, child)),
        1 => one().prop_map(|(root, child)| Call::Cancel(root, child)),
        4 => any::<usize>().prop_map(Call::Beat),
        3 => (root(), any::<bool>()).prop_map(|(root, force)| Call::Delete(root, force)),
        2 => root().prop_map(Call::Restart),
        1 => root().prop_map(Call::Prune),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let deed = || {
        prop_oneof![
            3 => Just(Deed::Schedule),
            2 => Just(Deed::Outcome),
            2 => Just(Deed::StartChild),
            1 => Just(Deed::TellTheOther),
            1 => Just(Deed::End)
        ]
    };
    let one = || (root(), prop::bool::weighted(0.25));
    let owner = prop_oneof![
        2 => (one(), deed()).prop_map(|((root, child), deed)| OwnerStep::Decide(root, child, deed)),
        3 => one().prop_map(|(root, child)| OwnerStep::Commit(root, child)),
        3 => (one(), deed()).prop_map(|((root, child), deed)| OwnerStep::DecideAndCommit(root, child, deed)),
    ];
    (prop::option::weighted(0.7, owner), vec(call(), 0..5)).prop_map(|(owner, calls)| Step { owner, calls })
}

/// A property test inside of an asynchronous one.
async fn nothing_outlives_its_life_in_any_interleaving(store: &dyn Store) {
    let owner = Owner::of_all(store).await;
    let seed = RngSeed::Fixed(seed());
    let config = ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        rng_seed: seed,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    };
    tokio::task::block_in_place(|| {
        let run = |steps: Vec<Step>| {
            tokio::runtime::Handle::current().block_on(async {
                let mut world = World::new(store, &owner);
                for step in steps {
                    world.carry_out(step).await;
                    world.check().await;
                }
                Ok(())
            })
        };
        if let Err(failure) = TestRunner::new(config).run(&vec(step(), 1..26), run) {
            panic!("with the seed {seed}: {failure}");
        }
    });
}

/// The same steps in every run, so that a failure is one of the change at hand; others with another seed in the environment.
fn seed() -> u64 {
    std::env::var("PROPTEST_RNG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// One id as it should be.
#[derive(Clone, Debug, Default)]
struct Known {
    exists: bool,
    /// The step in which its present life began.
    since: u64,
    /// The step in which its row was made.
    made: u64,
    execution: u64,
}

/// An activity that was scheduled once.
#[derive(Clone, Debug)]
struct Activity {
    key: ActivityKey,
    scheduled_at: Millis,
    name: String,
    label: String,
}

struct World<'a> {
    store: &'a dyn Store,
    owner: &'a Owner,
    case: u32,
    step: u64,
    roots: Vec<Known>,
    /// Turns that are decided and not committed, by instance.
    in_hand: BTreeMap<String, (FencedTurn, Option<Activity>)>,
    activities: Vec<Activity>,
    /// No two events are of the same moment, as the lives of an id are not.
    last: Millis,
}

/// What a call came to, as far as the model needs it.
enum Did {
    Made(usize),
    Replaced(usize),
    Deleted(usize),
    Nothing,
}

fn label(step: u64) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{step}.{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

fn step_of(label: &str) -> u64 {
    label.split('.').next().and_then(|step| step.parse().ok()).unwrap_or_else(|| panic!("{label:?} is no label"))
}

/// The labels that an event bears.
fn labels_of(event: &HistoryEvent) -> Vec<&str> {
    let said = match &event.kind {
        EventKind::ActivityScheduled { input, .. } => Some(input.as_str()),
        EventKind::ActivityCompleted { result, .. } => Some(result.as_str()),
        EventKind::CustomStatusUpdated { status } => status.as_deref(),
        EventKind::OrchestrationCompleted { output } => Some(output.as_str()),
        other => panic!("no turn here writes {other:?}"),
    };
    said.into_iter().chain(event.message_id.as_ref().map(MessageId::as_str)).collect()
}

fn scheduled(label: &str) -> EventKind {
    EventKind::ActivityScheduled {
        name: "Work".to_owned(),
        input: label.to_owned(),
        session_id: None,
        tag: None,
        token: Token(7),
        attempt: 1,
        first_event_id: None,
        timeouts: ActivityTimeouts::default(),
    }
}

impl<'a> World<'a> {
    fn new(store: &'a dyn Store, owner: &'a Owner) -> Self {
        static CASE: AtomicU32 = AtomicU32::new(0);
        Self {
            store,
            owner,
            case: CASE.fetch_add(1, Ordering::Relaxed),
            step: 0,
            roots: vec![Known::default(); ROOTS],
            in_hand: BTreeMap::new(),
            activities: Vec::new(),
            last: Millis(0),
        }
    }

    fn name(&self, root: usize, child: bool) -> String {
        format!("{}.{root}{}", self.case, if child { ".child" } else { "" })
    }

    async fn carry_out(&mut self, step: Step) {
        self.step += 1;
        let mut commit = None;
        match step.owner {
            Some(OwnerStep::Decide(root, child, deed)) => self.decide((root, child), deed).await,
            Some(OwnerStep::Commit(root, child)) => commit = self.in_hand.remove(&self.name(root, child)),
            Some(OwnerStep::DecideAndCommit(root, child, deed)) => {
                self.decide((root, child), deed).await;
                commit = self.in_hand.remove(&self.name(root, child));
            }
            None => {}
        }
        let (turn, activity) = commit.unzip();
        let (this, calls) = (&*self, step.calls);
        let commit = async {
            match turn {
                Some(turn) => this.commit(turn).await,
                None => false,
            }
        };
        let calls = join_all(calls.into_iter().map(|call| this.call(call)));
        let (is_committed, did) = tokio::join!(commit, calls);
        self.activities.extend(activity.flatten().filter(|_| is_committed));
        for root in 0..ROOTS {
            self.note(root, &did).await;
        }
    }

    async fn call(&self, call: Call) -> Did {
        let label = label(self.step);
        let send = async |(root, child): (usize, bool), message: Message| match self
            .store
            .send(&id(&self.name(root, child)), message, SendOptions::first_try(1_000))
            .await
        {
            Ok(_) | Err(Error::InstanceNotFound(_) | Error::Unavailable(_)) => Did::Nothing,
            Err(other) => panic!("{other:?}"),
        };
        match call {
            Call::Start(root, on_conflict) => self.start(root, (&label, on_conflict)).await,
            Call::Raise(root, child) => send((root, child), raise(&label)).await,
            Call::Enqueue(root, child) => {
                for number in 0..BURST {
                    send((root, child), enqueue(&format!("{label}.{number}"), "queue")).await;
                }
                Did::Nothing
            }
            Call::Cancel(root, child) => {
                let kind = MessageKind::Cancel { child: None, reason: label.clone() };
                send((root, child), Message { id: MessageId::new(label), kind }).await
            }
            Call::Beat(number) => self.beat(number).await,
            Call::Delete(root, force) => self.delete(root, force).await,
            Call::Restart(root) => match self.delete(root, true).await {
                Did::Deleted(_) => match self.start(root, (&label, StartConflict::UseExisting)).await {
                    // Somebody else's start was faster.
                    Did::Nothing => Did::Deleted(root),
                    did => did,
                },
                did => did,
            },
            Call::Prune(root) => {
                let options = PruneOptions { keep_last: Some(1), ..PruneOptions::default() };
                match self.store.prune(&id(&self.name(root, false)), options).await {
                    Ok(_) | Err(Error::InstanceNotFound(_) | Error::Unavailable(_)) => Did::Nothing,
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
    }

    async fn start(&self, root: usize, (label, on_conflict): (&str, StartConflict)) -> Did {
        let (instance, message) = (id(&self.name(root, false)), start_message(label, "orchestration"));
        match self.store.start(StartRequest { instance, message, on_conflict }).await {
            Ok(receipt) => match receipt.outcome {
                StartOutcome::Started => Did::Made(root),
                StartOutcome::Replaced => Did::Replaced(root),
                StartOutcome::AlreadyExists | StartOutcome::AlreadyExistsWithOtherInput => Did::Nothing,
            },
            Err(Error::Unavailable(_)) => Did::Nothing,
            Err(other) => panic!("{other:?}"),
        }
    }

    async fn delete(&self, root: usize, force: bool) -> Did {
        match self.store.delete(&id(&self.name(root, false)), DeleteOptions::first_try(force)).await {
            Ok(_) => Did::Deleted(root),
            Err(Error::InstanceNotFound(_) | Error::InstanceStillRunning(_) | Error::Unavailable(_)) => Did::Nothing,
            Err(other) => panic!("{other:?}"),
        }
    }

    async fn beat(&self, number: usize) -> Did {
        if !self.activities.is_empty() {
            let Activity { key, scheduled_at, name, label } = &self.activities[number % self.activities.len()];
            let of = HeartbeatOf { key, scheduled_at: *scheduled_at, activity: name };
            match self.store.save_heartbeat(of, label.clone()).await {
                Ok(()) | Err(Error::Unavailable(_)) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        Did::Nothing
    }

    /// Decides the next turn of an instance unless one is in hand. It consumes all that waits, as the engine's turns do.
    async fn decide(&mut self, (root, child): (usize, bool), deed: Deed) {
        let name = self.name(root, child);
        if self.in_hand.contains_key(&name) {
            return;
        }
        let Some(loaded) = self.store.load(&id(&name)).await.unwrap() else { return };
        let Loaded { shard, state: before, inbox, .. } = &loaded;
        let mut turn = Turn {
            expected: Expected { execution: before.execution, last_event_id: before.last_event_id },
            state: before.clone(),
            consumed: inbox.iter().filter_map(|row| row.seq).collect(),
            ..Turn::default()
        };
        let mut activity = None;
        if before.status == InstanceStatus::Running {
            for row in inbox {
                let kind = EventKind::CustomStatusUpdated { status: Some(row.message.id.as_str().to_owned()) };
                self.push(&mut turn, kind).message_id = Some(row.message.id.clone());
            }
            activity = self.act(&mut turn, &loaded, (root, child), deed);
            turn.state.version = "1.0.0".to_owned();
        } else if inbox.is_empty() {
            return;
        }
        let (instance, before, epoch) = (id(&name), before.clone(), self.owner.epoch(*shard));
        let fenced = FencedTurn { instance, shard: *shard, epoch, before, turn, move_to: None, mailed: None };
        self.in_hand.insert(name, (fenced, activity));
    }

    fn act(&mut self, turn: &mut Turn, loaded: &Loaded, (root, child): (usize, bool), deed: Deed) -> Option<Activity> {
        let (label, instance) = (label(self.step), id(&self.name(root, child)));
        let execution = turn.state.execution;
        match deed {
            Deed::Schedule => {
                let (scheduled_at, event) = {
                    let event = self.push(turn, scheduled(&label));
                    (event.at, event.event_id)
                };
                let entry = KvEntry { key: "key".to_owned(), value: label.clone(), last_updated_at_ms: scheduled_at.0 };
                turn.kv = vec![KvChange::Set(entry)];
                turn.state.custom_status = Some(label.clone());
                let name = activity_name(&instance, execution, event);
                return Some(Activity { key: ActivityKey { instance, execution, event }, scheduled_at, name, label });
            }
            Deed::Outcome => {
                if let Some(source) = outstanding(&loaded.history).next() {
                    let done = EventKind::ActivityCompleted { result: label, run: None };
                    self.push(turn, done).source_event_id = Some(source);
                    turn.heartbeats = vec![activity_name(&instance, execution, source)];
                }
            }
            Deed::StartChild if !child => {
                let event = self.push(turn, EventKind::CustomStatusUpdated { status: Some(label) }).event_id;
                let parent = Some(ParentLink { instance, execution, event, token: Token(event.0) });
                let name = "orchestration".to_owned();
                let start = StartMessage { name, version: None, input: String::new(), parent, traceparent: None };
                self.tell(turn, self.name(root, true), MessageKind::Start(start));
            }
            Deed::StartChild | Deed::TellTheOther => {
                let kind = MessageKind::Raise { name: "event".to_owned(), data: String::new() };
                self.tell(turn, self.name((root + 1) % ROOTS, child), kind);
            }
            Deed::End => {
                self.push(turn, EventKind::OrchestrationCompleted { output: label });
                turn.state.status = InstanceStatus::Completed;
                turn.state.completed_at = Some(self.last);
            }
        }
        None
    }

    fn tell(&self, turn: &mut Turn, to: String, kind: MessageKind) {
        let message = Message { id: MessageId::new(label(self.step)), kind };
        turn.outbound.push(OutboundMessage { to: id(&to), message, when_taken: None });
    }

    fn push<'t>(&mut self, turn: &'t mut Turn, kind: EventKind) -> &'t mut HistoryEvent {
        self.last = Millis(self.store.now().0.max(self.last.0 + 1));
        turn.state.last_event_id = turn.state.last_event_id.next();
        turn.events.push((turn.state.execution, event(turn.state.last_event_id, kind, self.last)));
        &mut turn.events.last_mut().expect("it was pushed").1
    }

    async fn commit(&self, mut turn: FencedTurn) -> bool {
        // What a turn tells others is sent when it is committed, and is for whoever has the id then.
        for outbound in &mut turn.turn.outbound {
            outbound.message.id = MessageId::new(label(self.step));
        }
        match self.store.commit(vec![turn]).await {
            Ok(reply) => match &reply.outcomes[..] {
                [TurnOutcome::Committed { .. }] => true,
                [TurnOutcome::Conflict] => false,
                other => panic!("{other:?}"),
            },
            Err(Error::Unavailable(_)) => false,
            Err(other) => panic!("{other:?}"),
        }
    }

    /// What the step has made of a root.
    async fn note(&mut self, root: usize, did: &[Did]) {
        let known = &self.roots[root];
        let is_made = did.iter().any(|did| matches!(did, Did::Made(made) if *made == root));
        let is_deleted =
            did.iter().any(|did| matches!(did, Did::Deleted(gone) if *gone == root)) || (known.exists && is_made);
        let is_replaced = did.iter().any(|did| matches!(did, Did::Replaced(other) if *other == root));
        let row = self.store.state(&id(&self.name(root, false))).await.unwrap();
        match (is_made, is_deleted) {
            (true, true) => {}
            (true, false) => assert!(row.is_some(), "what was started is not there"),
            (false, true) => assert!(row.is_none(), "what was deleted is there"),
            (false, false) => assert_eq!(row.is_some(), known.exists, "made or gone by itself"),
        }
        let execution = row.as_ref().map_or(0, |row| row.execution.0);
        let known = &mut self.roots[root];
        known.exists = row.is_some();
        if is_made {
            (known.since, known.made) = (self.step, self.step);
        } else if is_replaced && execution > known.execution {
            known.since = self.step;
        }
        known.execution = execution;
    }

    async fn check(&self) {
        let roots = self.roots.iter().enumerate().map(async |(root, known)| {
            self.check_one(&self.name(root, false), known).await;
            let child = self.name(root, true);
            let exists = self.store.state(&id(&child)).await.unwrap().is_some();
            assert!(known.exists || !exists, "the child {child} has outlived its parent");
            // Children go with the row of their parent, whatever executions that has had.
            self.check_one(&child, &Known { exists, since: known.made, ..known.clone() }).await;
        });
        join_all(roots).await;
    }

    async fn check_one(&self, name: &str, known: &Known) {
        let instance = id(name);
        let loaded = self.store.load(&instance).await.unwrap();
        let mut found: Vec<String> = Vec::new();
        let inbox = self.store.inbox(&instance, InboxCursor::default()).await.unwrap().0;
        found.extend(inbox.iter().map(|row| row.message.id.as_str().to_owned()));
        found.extend(self.store.kv(&instance, None).await.unwrap().into_iter().map(|entry| entry.value));
        let execution = ExecutionId(known.execution.max(1));
        let history = match &loaded {
            Some(loaded) => {
                found.extend(loaded.state.custom_status.clone());
                loaded.history.clone()
            }
            None => self.store.history(&instance, execution, None).await.unwrap(),
        };
        found.extend(history.iter().flat_map(labels_of).map(str::to_owned));
        let running = loaded.as_ref().filter(|loaded| loaded.state.status == InstanceStatus::Running);
        for activity in self.activities.iter().filter(|activity| activity.key.instance == instance) {
            let Some(said) = self.store.heartbeat(&instance, &activity.name).await.unwrap() else { continue };
            let is_outstanding = running.is_some_and(|loaded| {
                loaded.state.execution == activity.key.execution
                    && outstanding(&loaded.history).any(|event| event == activity.key.event)
            });
            assert!(is_outstanding, "{name}: the heartbeat {said} of an activity that is over");
            found.push(said);
        }
        assert_eq!(loaded.is_some(), known.exists, "{name} is there or not");
        assert!(loaded.is_some() || found.is_empty(), "{name} does not exist, and these are at rest: {found:?}");
        let old: Vec<_> = found.iter().filter(|label| step_of(label) < known.since).collect();
        assert!(old.is_empty(), "{name} has lived since step {}, and holds {old:?} of before", known.since);
        let executions = self.store.executions(&instance).await;
        let is_ahead = executions.is_ok_and(|all| all.iter().any(|one| one.execution_id > known.execution.max(1)));
        assert!(!is_ahead || name.ends_with("child"), "{name} holds executions of another life");
    }
}

fn activity_name(instance: &InstanceId, execution: ExecutionId, event: EventId) -> String {
    format!("{instance}/{execution}/{event}")
}

/// Scheduling events without an outcome.
fn outstanding(history: &[HistoryEvent]) -> impl Iterator<Item = EventId> {
    let is_open = |event: &HistoryEvent| !history.iter().any(|other| other.source_event_id == Some(event.event_id));
    history
        .iter()
        .filter(move |event| matches!(event.kind, EventKind::ActivityScheduled { .. }) && is_open(event))
        .map(|event| event.event_id)
}
