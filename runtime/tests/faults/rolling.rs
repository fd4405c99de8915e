//! Nodes that are told to stop, one after the other, while work goes on.
//!
//! Goal: nothing is lost, and no activity that finished in time runs twice. Method: the broker waits an hour before it
//! takes a silent worker's item away, so whatever a leaving node does not hand back itself stays away for the length of the
//! test; and every run of an activity is written into a ledger that lies beside the cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outlast::{Client, EventKind, OrchestrationStatus};
use tokio::task::JoinSet;

use crate::node::{Cluster, PATIENCE};
use crate::rolling_node::{EVENTS, Part, RollingNode, SESSIONS, STEPS_MS, WORDS};

/// Between two starts of a client.
const START_EVERY: Duration = Duration::from_millis(50);
/// Between two messages to one instance.
const SEND_EVERY: Duration = Duration::from_millis(150);
const KINDS: [&str; 6] = ["Chain", "Queue", "Events", "Session", "Fan", "Family"];

/// A cluster whose broker takes nothing away from a silent worker, and whose nodes are not thought dead while the machine is
/// busy.
fn patient_cluster() -> Cluster {
    let ack_wait = Duration::from_secs(3_600);
    Cluster { ack_wait, lease: Duration::from_secs(15), ..Cluster::shared() }
}

/// Where the activities of a test write down their runs.
struct Ledger {
    _directory: tempfile::TempDir,
    file: PathBuf,
}

impl Ledger {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ledger");
        std::fs::write(&file, "").unwrap();
        Self { _directory: directory, file }
    }

    /// What happened to each activity, in order: `begin` and `end`, each with the worker.
    fn runs(&self) -> BTreeMap<String, Vec<String>> {
        let mut runs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in std::fs::read_to_string(&self.file).unwrap().lines() {
            let (key, what) = line.split_once(' ').unwrap();
            runs.entry(key.to_owned()).or_default().push(what.to_owned());
        }
        runs
    }

    /// Waits until so many activities have begun.
    async fn begun(&self, count: usize) {
        let begun = async {
            while self.runs().len() < count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, begun).await.expect("activities begin");
    }

    fn open_gate(&self) {
        std::fs::write(self.file.with_extension("open"), "").unwrap();
    }

    /// Every run ended, and there was one for each activity.
    fn check(&self, activities: usize) {
        let runs = self.runs();
        let word = |what: &str| what.split(' ').next().unwrap_or_default().to_owned();
        let odd = runs.iter().filter(|(_, whats)| {
            let words: Vec<String> = whats.iter().map(|what| word(what)).collect();
            words != ["begin", "end"]
        });
        let odd: Vec<_> = odd.collect();
        assert!(odd.is_empty(), "{} of {} activities ran not once: {odd:#?}", odd.len(), runs.len());
        assert_eq!(runs.len(), activities);
    }
}

/// Starts an instance and sends what it waits for.
async fn drive(client: Client, kind: &'static str, id: String, number: usize) -> String {
    let input = match kind {
        "Queue" | "Events" => String::new(),
        "Session" => format!("{id} session{}", number / KINDS.len() % SESSIONS),
        _ => id.clone(),
    };
    client.start_orchestration(&id, kind, input).await.unwrap();
    match kind {
        "Queue" => {
            for word in 0..WORDS {
                client.enqueue_event(&id, "words", format!("word{word}")).await.unwrap();
                tokio::time::sleep(SEND_EVERY).await;
            }
        }
        "Events" => {
            client.wait_for_status_change(&id, 0, Duration::from_secs(1), PATIENCE).await.unwrap();
            for number in 0..EVENTS {
                client.raise_event(&id, format!("event{number}"), format!("data{number}")).await.unwrap();
                tokio::time::sleep(SEND_EVERY).await;
            }
        }
        _ => {}
    }
    id
}

fn expected(kind: &str, id: &str) -> (String, usize) {
    let numbered = |word: &str, count| (0..count).map(|n| format!("{word}{n}")).collect::<Vec<_>>().join(" ");
    match kind {
        "Queue" => (numbered("word", WORDS), 1),
        "Events" => (numbered("data", EVENTS), 0),
        "Family" => (numbered(&format!("{id}."), 2), 2 * STEPS_MS.len()),
        "Fan" => (id.to_owned(), 2 * STEPS_MS.len()),
        _ => (id.to_owned(), STEPS_MS.len()),
    }
}

/// Starts instances until it is told to stop; returns how many of which kind.
async fn load(client: Client, mut stop: tokio::sync::oneshot::Receiver<()>) -> Vec<(&'static str, String)> {
    let (mut started, mut drives) = (Vec::new(), JoinSet::new());
    while stop.try_recv().is_err() {
        let number = started.len();
        let (kind, id) = (KINDS[number % KINDS.len()], format!("i{number}"));
        drives.spawn(drive(client.clone(), kind, id.clone(), number));
        started.push((kind, id));
        tokio::time::sleep(START_EVERY).await;
    }
    while let Some(driven) = drives.join_next().await {
        driven.unwrap();
    }
    started
}

/// Every instance has its one right result, and histories without a gap.
async fn check_instances(client: &Client, started: &[(&'static str, String)]) -> usize {
    let mut activities = 0;
    for (kind, id) in started {
        let (output, ran) = expected(kind, id);
        activities += ran;
        let Ok(status) = client.wait_for_orchestration(id, PATIENCE).await else {
            panic!("{kind} {id} does not end: {:#?}", client.read_execution_history(id, 1).await);
        };
        let OrchestrationStatus::Completed { output: found, .. } = status else { panic!("{id}: {status:?}") };
        assert_eq!(found, output, "{kind} {id}");
        for execution in client.list_executions(id).await.unwrap() {
            let history = client.read_execution_history(id, execution).await.unwrap();
            for (index, event) in history.iter().enumerate() {
                assert_eq!(event.event_id, index as u64 + 1, "{id}");
                if let EventKind::TimerFired { fire_at_ms } = event.kind {
                    assert!(event.timestamp_ms >= fire_at_ms, "{id}: a timer fired early");
                }
            }
        }
    }
    activities
}

async fn restart(node: &mut RollingNode, cluster: &Cluster, (part, ledger): (Part, &Path)) {
    node.tell_to_stop();
    let started = {
        let (cluster, ledger) = (cluster.clone(), ledger.to_owned());
        tokio::task::spawn_blocking(move || RollingNode::start(&cluster, part, &ledger)).await.unwrap()
    };
    std::mem::replace(node, started).ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_loses_nothing_and_runs_nothing_twice() {
    let (cluster, ledger) = (patient_cluster(), Ledger::new());
    let parts = [Part::Orchestrator, Part::Worker, Part::Both, Part::Orchestrator, Part::Worker];
    let mut nodes: Vec<RollingNode> =
        parts.iter().map(|part| RollingNode::start(&cluster, *part, &ledger.file)).collect();
    let client = cluster.client().await;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let loading = tokio::spawn(load(client.clone(), stopped));
    for _ in 0..2 {
        for (node, part) in nodes.iter_mut().zip(parts) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            restart(node, &cluster, (part, &ledger.file)).await;
        }
    }
    stop.send(()).unwrap();
    let started = loading.await.unwrap();
    let activities = check_instances(&client, &started).await;
    ledger.check(activities);
    println!("{} instances, {activities} activities", started.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_told_to_stop_hands_back_what_it_has_not_begun() {
    let (cluster, ledger) = (patient_cluster(), Ledger::new());
    let _orchestrator = RollingNode::start(&cluster, Part::Orchestrator, &ledger.file);
    let client = cluster.client().await;
    let ids: Vec<(&str, String)> = (0..200).map(|number| ("Gate", format!("g{number}"))).collect();
    let mut first = RollingNode::start(&cluster, Part::Worker, &ledger.file);
    for (kind, id) in &ids {
        client.start_orchestration(id, *kind, id.clone()).await.unwrap();
    }
    // It has begun as many as it has slots, and more waits for it.
    ledger.begun(16).await;
    first.tell_to_stop();
    let _second = RollingNode::start(&cluster, Part::Worker, &ledger.file);
    ledger.begun(32).await;
    ledger.open_gate();
    first.ended().await;
    check_instances(&client, &ids).await;
    ledger.check(ids.len());
}
