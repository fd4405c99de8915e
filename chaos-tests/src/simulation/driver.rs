//! Runs a seed: nodes, clients and faults beside each other, then peace, then the checks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use outlast::runtime::Runtime;
use outlast::{Client, ClientError, OrchestrationStatus, RuntimeOptions, TagFilter};
use outlast_core::Millis;
use outlast_storage::TurnOutcome;
use tokio::time::{Instant, sleep};

use super::checks::{self, Ended};
use super::code::{self, EVENT, Input, Ledger, PROGRAM, QUEUE};
use super::dice::Dice;
use super::faults::{self, FAULTS_UNTIL, Fault};
use super::process::{Numbered, Pace, Process};
use super::program::{self, Program, TAGS};
use super::trace::Trace;
use super::{Counts, Options, Outcome};
use crate::broker::{BrokerFaults, SimulatedBrokerServer};
use crate::lock::locked;
use crate::store::{Faults, SimulatedServer};

const SLOTS: usize = 3;
/// How long instances may take once all is healed.
const PATIENCE: Duration = Duration::from_secs(240);
/// What is done again at rest, such as asking about an item that came twice, has ended by then.
const SETTLES_WITHIN: Duration = Duration::from_secs(45);

/// All that a run shares.
struct World {
    seed: u64,
    trace: Arc<Trace>,
    store: Arc<SimulatedServer>,
    broker: Arc<SimulatedBrokerServer>,
    ledger: Arc<Ledger>,
    pace: Arc<Pace>,
    processes: AtomicU64,
    fenced: Arc<AtomicU64>,
    faults: AtomicU64,
    slots: [Mutex<Option<Node>>; SLOTS],
    ended: Mutex<Vec<Ended>>,
    wrong: Arc<Mutex<Vec<String>>>,
}

struct Node {
    number: u64,
    process: Arc<Process>,
    _runtime: Arc<Runtime>,
}

/// What a client does with an instance beside waiting for its end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    Nothing,
    Cancels,
    PausesAndResumes,
    DeletesAndStartsAnew,
}

pub(super) async fn run(seed: u64, options: Options) -> Outcome {
    let world = World::new(seed, options);
    for slot in 0..SLOTS {
        tokio::spawn(Arc::clone(&world).fill(slot));
    }
    let mut dice = Dice::new(seed, 2);
    let count = 10 + dice.index(6);
    let mut clients = Vec::new();
    for number in 0..count {
        let plan = Plan::draw(&mut dice, number);
        if options.instances_max.is_none_or(|max| number < max) {
            clients.push(tokio::spawn(Arc::clone(&world).accompany(plan)));
        }
    }
    world.disturb(options.faults_max).await;
    world.heal().await;
    let instances = clients.len() as u64;
    for client in clients {
        if let Err(panic) = client.await {
            world.note(format!("a client panicked: {panic}"));
        }
    }
    sleep(SETTLES_WITHIN).await;
    let mut found = Vec::new();
    let events = checks::at_rest(&world.store.connect(), &world.ledger, &mut found).await;
    checks::nothing_began_late(&world.ledger, &locked(&world.ended), &mut found);
    found.into_iter().for_each(|wrong| world.note(wrong));
    if world.pace.has_stopped() {
        world.note("time stands still: tasks wake each other without end".to_owned());
    }
    let left = world.broker.live();
    if !left.is_empty() {
        world.note(format!("the stream still holds {}", left.join(", ")));
    }
    let (hits, carried) = (world.store.hits(), world.broker.hits());
    let hits = hits.lost + hits.answers_lost + hits.delayed + hits.old_reads + carried.lost + carried.refused;
    let counts = Counts {
        processes: world.processes.load(Ordering::Relaxed),
        instances,
        events,
        attempts: world.ledger.runs().len() as u64,
        faults: world.faults.load(Ordering::Relaxed) + hits + carried.doubled + carried.delayed + carried.items_lost,
        fenced: world.fenced.load(Ordering::Relaxed),
        elapsed: world.trace.elapsed(),
    };
    let wrong = std::mem::take(&mut *locked(&world.wrong));
    Outcome { seed, wrong, counts, digest: world.trace.digest(), lines: world.trace.lines() }
}

impl World {
    fn new(seed: u64, options: Options) -> Arc<Self> {
        let mut dice = Dice::new(seed, 1);
        let trace = Arc::new(Trace::new(options.keep_lines));
        let start = Millis(1_700_000_000_000);
        let store = crate::store::Options {
            shards: 8 << dice.below(3),
            lease: Duration::from_secs(5),
            start,
            seed: dice.bits(),
            faults: Faults::default(),
        };
        let store = SimulatedServer::new(store);
        let payload_bytes_max = if dice.one_in(2) { 500 } else { 1 << 20 };
        let broker = SimulatedBrokerServer::new(dice.bits(), payload_bytes_max);
        let (fenced, lines) = (Arc::new(AtomicU64::new(0)), Arc::clone(&trace));
        let count = Arc::clone(&fenced);
        let wrong = Arc::<Mutex<Vec<String>>>::default();
        let (epochs, older) = (Mutex::new(BTreeMap::new()), Arc::clone(&wrong));
        store.on_commit(move |turn, outcome| {
            if matches!(outcome, TurnOutcome::Fenced) {
                count.fetch_add(1, Ordering::Relaxed);
            }
            let (events, epoch) = (turn.turn.events.len(), turn.epoch.0);
            let mut epochs = locked(&epochs);
            let last = epochs.entry(turn.shard).or_insert(epoch);
            if matches!(outcome, TurnOutcome::Committed { .. }) && epoch < std::mem::replace(last, epoch.max(*last)) {
                let what = format!("{} was written by epoch {epoch} after a later one", turn.instance);
                locked(&older).push(what);
            }
            let outcome = match outcome {
                TurnOutcome::Committed { .. } => "committed",
                TurnOutcome::Fenced => "fenced",
                TurnOutcome::Conflict => "in conflict",
                TurnOutcome::Refused(_) => "refused",
            };
            lines.line(format_args!("turn of {}: {events} events by epoch {epoch}, {outcome}", turn.instance));
        });
        Arc::new(Self {
            seed,
            trace,
            store,
            broker,
            ledger: Arc::default(),
            pace: Pace::new(),
            processes: AtomicU64::new(0),
            fenced,
            faults: AtomicU64::new(0),
            slots: Default::default(),
            ended: Mutex::default(),
            wrong,
        })
    }

    fn note(&self, wrong: String) {
        self.trace.line(format_args!("WRONG: {wrong}"));
        locked(&self.wrong).push(wrong);
    }

    /// The driver knows that a life of an id is over.
    fn note_end(&self, id: &str, life: u32) {
        self.trace.line(format_args!("{id} has ended, life {life}"));
        locked(&self.ended).push(Ended { instance: id.to_owned(), life, at: Instant::now() });
    }

    fn slot(&self, slot: usize) -> MutexGuard<'_, Option<Node>> {
        locked(&self.slots[slot])
    }

    fn process(&self) -> (u64, Arc<Process>) {
        let number = self.processes.fetch_add(1, Ordering::Relaxed);
        (number, Process::new(&self.store, &self.broker, &self.pace, Numbered { seed: self.seed, number }))
    }

    /// Starts a node in a slot, however often the store refuses.
    async fn fill(self: Arc<Self>, slot: usize) {
        loop {
            let (number, process) = self.process();
            let activities = code::activities(&self.ledger, &self.trace, number);
            let options = node_options(slot, &mut Dice::new(self.seed, 100 + number));
            let started = Runtime::try_start(process.clone(), activities, code::orchestrations(), options).await;
            match started {
                Ok(runtime) => {
                    self.trace.line(format_args!("p{number} serves in slot {slot}"));
                    *self.slot(slot) = Some(Node { number, process, _runtime: runtime });
                    return;
                }
                Err(error) => self.trace.line(format_args!("p{number} did not start: {error}")),
            }
            process.kill();
            sleep(Duration::from_millis(300)).await;
        }
    }

    /// Lets all faults happen, each in its time.
    async fn disturb(self: &Arc<Self>, faults_max: Option<usize>) {
        let begun = Instant::now();
        let faults = faults::draw(&mut Dice::new(self.seed, 3), SLOTS);
        let count = faults_max.unwrap_or(usize::MAX);
        for (at, fault) in faults.into_iter().take(count) {
            tokio::time::sleep_until(begun + at).await;
            self.trace.line(format_args!("{fault:?}"));
            self.inflict(fault).await;
        }
        tokio::time::sleep_until(begun + FAULTS_UNTIL).await;
    }

    async fn inflict(self: &Arc<Self>, fault: Fault) {
        match fault {
            Fault::Kill(slot, pause) => {
                let Some(node) = self.slot(slot).take() else { return };
                self.count();
                self.trace.line(format_args!("p{} dies", node.number));
                node.process.kill();
                drop(node);
                let world = Arc::clone(self);
                tokio::spawn(async move {
                    sleep(pause).await;
                    world.fill(slot).await;
                });
            }
            Fault::CutOffBroker(slot, time) => {
                self.cut_off(slot, time, |process| process.broker.interrupt(), |process| process.broker.resume());
            }
            Fault::CutOffStore(slot, time) => {
                self.cut_off(slot, time, |process| process.store.interrupt(), |process| process.store.resume());
            }
            Fault::Wipe => self.broker.wipe().await,
            Fault::RollBack => self.broker.roll_back().await,
            Fault::Copy => self.broker.copy(),
            Fault::LoseFromTheMiddle(share) => self.broker.lose_from_the_middle(share),
            Fault::Store(faults) => self.store.set_faults(faults),
            Fault::Broker(faults) => self.broker.set_faults(faults),
        }
    }

    /// Interrupts a way of the process in a slot, and resumes it later.
    fn cut_off(&self, slot: usize, time: Duration, interrupt: fn(&Process), resume: fn(&Process)) {
        let Some(process) = self.slot(slot).as_ref().map(|node| Arc::clone(&node.process)) else { return };
        self.count();
        interrupt(&process);
        tokio::spawn(async move {
            sleep(time).await;
            resume(&process);
        });
    }

    fn count(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    async fn heal(self: &Arc<Self>) {
        self.trace.line(format_args!("all is healed"));
        self.store.set_faults(Faults::default());
        self.broker.set_faults(BrokerFaults::default());
        for slot in 0..SLOTS {
            if let Some(node) = &*self.slot(slot) {
                node.process.broker.resume();
                node.process.store.resume();
            }
        }
        // Those that are being started are there in a moment.
        while !self.pace.has_stopped() && (0..SLOTS).any(|slot| self.slot(slot).is_none()) {
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Starts an instance, does with it what its plan says, and checks how it ends.
    async fn accompany(self: Arc<Self>, plan: Plan) {
        sleep(plan.starts_after).await;
        let (_, process) = self.process();
        let client = Client::new(process);
        let id = &plan.id;
        self.start(&client, id, 1, &plan.program).await;
        let deed = async {
            sleep(plan.acts_after).await;
            match plan.deed {
                Deed::Nothing | Deed::DeletesAndStartsAnew => {}
                Deed::Cancels => insist(|| client.cancel_instance(id, "the driver cancels it")).await,
                Deed::PausesAndResumes => {
                    insist(|| client.pause_instance(id)).await;
                    sleep(plan.acts_after).await;
                    insist(|| client.resume_instance(id)).await;
                }
            }
        };
        if plan.deed == Deed::DeletesAndStartsAnew {
            let feed = self.feed(&client, id, 1, &plan.program);
            let delete = async {
                deed.await;
                insist(|| async { client.delete_instance(id, true).await.map(drop) }).await;
            };
            // What the driver has under way for the first life may end after its deletion.
            tokio::join!(feed, delete);
            self.note_end(id, 1);
            self.start(&client, id, 2, &plan.second).await;
            let (_, ended) = tokio::join!(self.feed(&client, id, 2, &plan.second), self.end_of(&client, id, 2));
            return self.judge(&plan, &plan.second, ended);
        }
        let (_, (), ended) = tokio::join!(self.feed(&client, id, 1, &plan.program), deed, self.end_of(&client, id, 1));
        self.judge(&plan, &plan.program, ended);
    }

    async fn start(&self, client: &Client, id: &str, life: u32, program: &Program) {
        let input = code::text(&Input { program: program.clone(), life, generation: 0, taken: 0 });
        insist(|| client.start_orchestration(id, PROGRAM, input.clone())).await;
        self.trace.line(format_args!("{id} is started, life {life}"));
    }

    /// Raises the event and fills the queue until the instance has ended.
    async fn feed(&self, client: &Client, id: &str, life: u32, program: &Program) {
        if !program.waits() {
            return;
        }
        let messages = async {
            for number in 0..program.messages() {
                insist(|| client.enqueue_event(id, QUEUE, format!("{life} {number}"))).await;
            }
        };
        let events = async {
            let deadline = Instant::now() + FAULTS_UNTIL + PATIENCE;
            while Instant::now() < deadline {
                let raised = client.raise_event(id, EVENT, life.to_string()).await;
                if matches!(raised, Err(ClientError::InstanceNotFound { .. })) {
                    return;
                }
                let status = client.get_orchestration_status(id).await;
                let is_over = |status: &OrchestrationStatus| !matches!(status, OrchestrationStatus::Running { .. });
                if status.is_ok_and(|status| is_over(&status)) {
                    return;
                }
                sleep(Duration::from_millis(700)).await;
            }
        };
        tokio::join!(messages, events);
    }

    async fn end_of(&self, client: &Client, id: &str, life: u32) -> Option<OrchestrationStatus> {
        let deadline = Instant::now() + FAULTS_UNTIL + PATIENCE;
        loop {
            let ended = client.wait_for_orchestration(id, Duration::from_secs(5)).await;
            match ended {
                Ok(status) => {
                    self.note_end(id, life);
                    return Some(status);
                }
                Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(100)).await,
                Err(error) => {
                    let problems = client.list_problems().await.unwrap_or_default();
                    self.note(format!("{id} does not end: {error}; problems: {problems:?}"));
                    return None;
                }
            }
        }
    }

    fn judge(&self, plan: &Plan, program: &Program, ended: Option<OrchestrationStatus>) {
        let output = match ended {
            None => return,
            Some(OrchestrationStatus::Completed { output, .. }) => Ok(output),
            Some(OrchestrationStatus::Failed { details, .. }) => Err(details.display_message()),
            Some(other) => return self.note(format!("{}: a wait returned {other:?}", plan.id)),
        };
        let was_cancelled = output.as_ref().is_err_and(|text| text.contains("the driver cancels it"));
        if was_cancelled && plan.deed == Deed::Cancels {
            return;
        }
        if !program.may_end_with(&output) {
            let (id, expected) = (&plan.id, program.expected());
            self.note(format!("{id} ({:?}) has ended as {output:?} instead of {expected:?}", plan.deed));
        }
    }
}

/// What is to happen to an instance.
struct Plan {
    id: String,
    program: Program,
    /// Of its second life.
    second: Program,
    deed: Deed,
    starts_after: Duration,
    acts_after: Duration,
}

impl Plan {
    fn draw(dice: &mut Dice, number: usize) -> Self {
        let (program, second) = (program::draw(dice, 0), program::draw(dice, 0));
        let deed = match dice.below(10) {
            0 | 1 => Deed::Cancels,
            2 => Deed::PausesAndResumes,
            3 => Deed::DeletesAndStartsAnew,
            _ => Deed::Nothing,
        };
        let (starts_after, acts_after) = (dice.millis(0, 30_000), dice.millis(0, 6_000));
        Self { id: format!("i{number}"), program, second, deed, starts_after, acts_after }
    }
}

fn node_options(slot: usize, dice: &mut Dice) -> RuntimeOptions {
    // The first slot serves everything, so that nothing waits for a worker that nobody starts.
    let worker_tag_filter = match slot {
        0 => TagFilter::Any,
        1 => TagFilter::default_and([TAGS[0]]),
        _ => TagFilter::DefaultOnly,
    };
    let defaults = RuntimeOptions::default();
    let mut limits = defaults.limits.clone();
    if dice.one_in(4) {
        limits.warm_instances_max = 1 + dice.index(4);
    }
    RuntimeOptions {
        worker_concurrency: 2 + dice.index(6),
        worker_tag_filter,
        max_sessions_per_runtime: 1 + dice.index(3),
        session_idle_timeout: dice.millis(1_000, 20_000),
        passivate_after: dice.millis(0, 5_000),
        limits,
        ..defaults
    }
}

/// Repeats a call of the driver until it was carried out, or there is no such instance any more.
async fn insist<F: Future<Output = Result<(), ClientError>>>(call: impl Fn() -> F) {
    while let Err(error) = call().await {
        if matches!(error, ClientError::InstanceNotFound { .. }) {
            return;
        }
        sleep(Duration::from_millis(200)).await;
    }
}
