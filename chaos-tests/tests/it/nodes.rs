//! Goal: whatever the store does to them, and whichever of them dies, nodes bring every instance to the one right end.
//! Method: real nodes on the simulated store, whose faults come from a seed, and a broker that loses nothing. Again and again a
//! node's handle is cut, then the node is dropped and another one takes its place. Commits that were on their way come later than
//! the lease of their node. Time is the machine's and threads are real, so a seed says which faults there are, not when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use outlast::providers::Provider;
use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus,
    RuntimeOptions,
};
use outlast_broker::Broker;
use outlast_broker::in_process::InProcessBroker;
use outlast_core::{ExecutionId, InstanceId};
use outlast_storage::{InspectStore as _, Store};

use outlast_chaos_tests::store::{Faults, Options, SimulatedServer, SimulatedStore};

const NODES: usize = 3;
const INSTANCES: usize = 24;
const CRASHES: usize = 5;
const STEPS: u32 = 3;
const LEASE: Duration = Duration::from_secs(1);
/// Beyond any delay that is waited for here.
const AT_LAST: Duration = Duration::from_secs(60);

/// How often each activity ran, by its input.
type Ledger = Arc<Mutex<BTreeMap<String, u32>>>;

struct Way {
    store: Arc<SimulatedStore>,
    broker: Arc<InProcessBroker>,
}

#[async_trait]
impl Provider for Way {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn broker(&self) -> Arc<dyn Broker> {
        self.broker.clone()
    }
}

impl Way {
    fn new(server: &Arc<SimulatedServer>, broker: &Arc<InProcessBroker>) -> Arc<Self> {
        let (store, broker) = (Arc::new(server.connect()), Arc::clone(broker));
        store.on_arrival(outlast::carry_arrivals(broker.clone()));
        Arc::new(Self { store, broker })
    }
}

struct TestNode {
    way: Arc<Way>,
    _runtime: Arc<Runtime>,
}

impl TestNode {
    /// Starts one, however often the store refuses.
    async fn start(server: &Arc<SimulatedServer>, broker: &Arc<InProcessBroker>, ledger: &Ledger) -> Self {
        loop {
            let way = Way::new(server, broker);
            let options = RuntimeOptions { worker_concurrency: 8, ..RuntimeOptions::default() };
            if let Ok(runtime) = Runtime::try_start(way.clone(), activities(ledger), orchestrations(), options).await {
                return Self { way, _runtime: runtime };
            }
        }
    }

    /// First nothing of it reaches the store any more, then it is gone.
    fn crash(self) {
        self.way.store.cut();
    }
}

fn activities(ledger: &Ledger) -> ActivityRegistry {
    let ledger = Arc::clone(ledger);
    ActivityRegistry::builder()
        .register("Step", move |_: ActivityContext, input: String| {
            *ledger.lock().unwrap().entry(input.clone()).or_default() += 1;
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok(format!("{input};"))
            }
        })
        .build()
}

fn orchestrations() -> OrchestrationRegistry {
    OrchestrationRegistry::builder()
        .register("Steps", async |ctx: OrchestrationContext, input: String| {
            let mut all = String::new();
            for step in 0..STEPS {
                all += &ctx.schedule_activity("Step", format!("{input}.{step}")).await?;
                ctx.schedule_timer(Duration::from_millis(150)).await;
            }
            all += &ctx.schedule_sub_orchestration("Child", input).await?;
            Ok(all)
        })
        .register("Child", async |ctx: OrchestrationContext, input: String| {
            ctx.schedule_activity("Step", format!("{input}.child")).await
        })
        .build()
}

fn inputs(instance: usize) -> Vec<String> {
    let steps = (0..STEPS).map(|step| format!("{instance}.{step}"));
    steps.chain([format!("{instance}.child")]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_instance_comes_to_its_one_end_though_the_store_fails_and_nodes_die() {
    let faults = Faults { lost: 20, answers_lost: 20, delayed: 60, old_reads: 60, delay_max: LEASE * 3 / 2 };
    let server = SimulatedServer::new(Options { lease: LEASE, seed: 1, ..Options::default() });
    let (broker, ledger) = (Arc::new(InProcessBroker::new()), Ledger::default());
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        nodes.push(TestNode::start(&server, &broker, &ledger).await);
    }
    let client = Client::new(Way::new(&server, &broker));
    for instance in 0..INSTANCES {
        client.start_orchestration(format!("i{instance}"), "Steps", instance.to_string()).await.unwrap();
    }
    server.set_faults(faults);
    for _ in 0..CRASHES {
        tokio::time::sleep(LEASE / 2).await;
        nodes.remove(0).crash();
        nodes.push(TestNode::start(&server, &broker, &ledger).await);
    }
    for instance in 0..INSTANCES {
        let ended = client.wait_for_orchestration(&format!("i{instance}"), AT_LAST).await;
        let ended = ended.unwrap_or_else(|error| panic!("i{instance}: {error}"));
        let expected: String = inputs(instance).iter().map(|input| format!("{input};")).collect();
        let is_right = matches!(&ended, OrchestrationStatus::Completed { output, .. } if *output == expected);
        assert!(is_right, "i{instance}: {ended:?}");
    }
    server.set_faults(Faults::default());
    let hits = server.hits();
    assert!(hits.lost > 0 && hits.answers_lost > 0 && hits.delayed > 0 && hits.old_reads > 0, "{hits:?}");
    check_histories(&server.connect()).await;
    let ran = ledger.lock().unwrap().clone();
    let wanted: BTreeSet<String> = (0..INSTANCES).flat_map(inputs).collect();
    assert_eq!(ran.into_keys().collect::<BTreeSet<_>>(), wanted);
}

/// Events are numbered without gap, and nothing has two outcomes.
async fn check_histories(store: &SimulatedStore) {
    for name in store.list(None).await.unwrap() {
        let history = store.history(&InstanceId::new(&name), ExecutionId(1), None).await.unwrap();
        let numbers: Vec<u64> = history.iter().map(|event| event.event_id.0).collect();
        assert_eq!(numbers, (1..=history.len() as u64).collect::<Vec<_>>(), "{name}");
        let outcomes: Vec<_> = history.iter().filter_map(|event| event.source_event_id).collect();
        assert_eq!(outcomes.iter().collect::<BTreeSet<_>>().len(), outcomes.len(), "{name}");
    }
}
