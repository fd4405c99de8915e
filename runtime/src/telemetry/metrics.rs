//! What a node measures. Without the feature `telemetry`, the calls do nothing.

#[cfg(feature = "telemetry")]
pub(crate) use self::on::*;

#[cfg(not(feature = "telemetry"))]
pub(crate) use self::off::*;

#[cfg(feature = "telemetry")]
mod on {
    use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
    use std::time::Duration;
    use tokio::time::Instant;

    use opentelemetry::KeyValue;
    use opentelemetry::metrics::{Counter, Histogram, Meter};
    use outlast_core::ActivityItem;

    use crate::node::node_task::NodeTask;

    /// What gauges read from a node.
    pub(crate) trait Gauged: Send + Sync {
        fn warm_instances(&self) -> usize;
        /// Messages in all mailboxes.
        fn mailbox_depth(&self) -> usize;
        /// What waits for code that no node has.
        fn unserved(&self) -> usize;
    }

    /// Upper bounds of the buckets for the size of a commit.
    const GROUP_BOUNDS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
    /// The same for the seconds of a commit.
    const COMMIT_BOUNDS: [f64; 14] =
        [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    /// The same for the seconds that an activity waits or runs.
    const WORK_BOUNDS: [f64; 16] =
        [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0];
    /// The label of work without a tag.
    const NO_TAG: &str = "=default";

    /// Made when telemetry is installed; before that nothing is measured.
    static INSTRUMENTS: OnceLock<Instruments> = OnceLock::new();
    /// Nodes of this process, for the gauges.
    static NODES: Mutex<Vec<Weak<dyn Gauged>>> = Mutex::new(Vec::new());

    struct Instruments {
        turns: Counter<u64>,
        group_size: Histogram<u64>,
        commit_seconds: Histogram<f64>,
        dispatched: Counter<u64>,
        queue_wait: Histogram<f64>,
        activity_seconds: Histogram<f64>,
        retries: Counter<u64>,
        redispatches: Counter<u64>,
        shard_moves: Counter<u64>,
        task_restarts: Counter<u64>,
    }

    /// Makes the instruments. Names and units are OpenTelemetry's; Prometheus sees `outlast.commit.duration` in `s` as
    /// `outlast_commit_duration_seconds`. `deploy/README.md` lists them as Prometheus does.
    pub(crate) fn install(meter: &Meter) {
        let counter = |name, unit, about| meter.u64_counter(name).with_unit(unit).with_description(about).build();
        let seconds = |name, about, bounds: &[f64]| {
            meter.f64_histogram(name).with_description(about).with_unit("s").with_boundaries(bounds.to_vec()).build()
        };
        let instruments = Instruments {
            turns: counter("outlast.turns", "{turn}", "turns committed"),
            group_size: meter
                .u64_histogram("outlast.commit.group_size")
                .with_unit("{turn}")
                .with_description("turns in one commit")
                .with_boundaries(GROUP_BOUNDS.to_vec())
                .build(),
            commit_seconds: seconds("outlast.commit.duration", "until a group is durable", &COMMIT_BOUNDS),
            dispatched: counter("outlast.activities.dispatched", "{item}", "items handed out for the first time"),
            queue_wait: seconds("outlast.queue_wait", "until a worker begins an item", &WORK_BOUNDS),
            activity_seconds: seconds("outlast.activity.duration", "user code of one attempt", &WORK_BOUNDS),
            retries: counter("outlast.activity.retries", "{attempt}", "attempts that a retry policy asked for"),
            redispatches: counter("outlast.redispatches", "{item}", "items handed out again"),
            shard_moves: counter("outlast.shard.moves", "{shard}", "shards that this node took over"),
            task_restarts: counter("outlast.task.restarts", "{restart}", "tasks of this node that ended unasked"),
        };
        // Series without labels, or with known ones, exist from the beginning, so that a rate sees their first increment.
        instruments.turns.add(0, &[]);
        instruments.shard_moves.add(0, &[]);
        NodeTask::ALL.iter().for_each(|task| instruments.task_restarts.add(0, &[KeyValue::new("task", task.name())]));
        // The meter's provider keeps gauges alive; nothing else holds them.
        let gauge = |name, unit, about, read: fn(&dyn Gauged) -> usize| {
            let sum = move || nodes().iter().map(|node| read(node.as_ref()) as u64).sum();
            meter
                .u64_observable_gauge(name)
                .with_unit(unit)
                .with_description(about)
                .with_callback(move |seen| seen.observe(sum(), &[]))
                .build()
        };
        let _warm = gauge("outlast.warm_instances", "{instance}", "instances with an actor in memory", |node| {
            node.warm_instances()
        });
        let _depth = gauge("outlast.mailbox.depth", "{message}", "messages that wait in all mailboxes", |node| {
            node.mailbox_depth()
        });
        let _unserved =
            gauge("outlast.unserved", "{item}", "what waits for code that no node has", |node| node.unserved());
        let _first = INSTRUMENTS.set(instruments);
    }

    /// A node whose gauges are read from now on.
    pub(crate) fn watch<N: Gauged + 'static>(node: &Arc<N>) {
        let node: Weak<dyn Gauged> = Arc::downgrade(node) as Weak<dyn Gauged>;
        let mut nodes = NODES.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|node| node.strong_count() > 0);
        nodes.push(node);
    }

    fn nodes() -> Vec<Arc<dyn Gauged>> {
        NODES.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    /// A turn is durable.
    pub(crate) fn turn_committed() {
        if let Some(instruments) = INSTRUMENTS.get() {
            instruments.turns.add(1, &[]);
        }
    }

    /// A commit under way.
    pub(crate) struct Commit {
        turns: usize,
        begun: Instant,
    }

    impl Commit {
        pub(crate) fn begin(turns: usize) -> Self {
            Self { turns, begun: Instant::now() }
        }

        /// It is durable.
        pub(crate) fn done(self) {
            if let Some(instruments) = INSTRUMENTS.get() {
                instruments.group_size.record(self.turns as u64, &[]);
                instruments.commit_seconds.record(self.begun.elapsed().as_secs_f64(), &[]);
            }
        }
    }

    fn tag(item: &ActivityItem) -> [KeyValue; 1] {
        [KeyValue::new("tag", item.tag.clone().unwrap_or_else(|| NO_TAG.to_owned()))]
    }

    fn activity(item: &ActivityItem) -> [KeyValue; 1] {
        [KeyValue::new("activity", item.name.clone())]
    }

    /// A turn has scheduled these.
    pub(crate) fn dispatched(items: &[ActivityItem]) {
        let Some(instruments) = INSTRUMENTS.get() else { return };
        for item in items {
            instruments.dispatched.add(1, &tag(item));
            if item.attempt > 1 {
                instruments.retries.add(1, &activity(item));
            }
        }
    }

    /// These were handed out again: by their owner, or by the broker, which the worker that got them counts.
    pub(crate) fn redispatched(items: &[ActivityItem]) {
        let Some(instruments) = INSTRUMENTS.get() else { return };
        items.iter().for_each(|item| instruments.redispatches.add(1, &tag(item)));
    }

    /// A worker begins an item. A redelivered one has waited for more than a worker: an earlier one may have begun it.
    pub(crate) fn begun(item: &ActivityItem, queued_ms: u64, redelivered: bool) {
        if redelivered {
            redispatched(std::slice::from_ref(item));
        } else if let Some(instruments) = INSTRUMENTS.get() {
            instruments.queue_wait.record(Duration::from_millis(queued_ms).as_secs_f64(), &tag(item));
        }
    }

    /// User code has ended.
    pub(crate) fn ran(item: &ActivityItem, time: Duration) {
        if let Some(instruments) = INSTRUMENTS.get() {
            instruments.activity_seconds.record(time.as_secs_f64(), &activity(item));
        }
    }

    /// A task of the node has ended unasked and is started anew.
    pub(crate) fn task_failed(task: NodeTask) {
        if let Some(instruments) = INSTRUMENTS.get() {
            instruments.task_restarts.add(1, &[KeyValue::new("task", task.name())]);
        }
    }

    /// This node has taken shards over.
    pub(crate) fn shards_taken(count: usize) {
        if let Some(instruments) = INSTRUMENTS.get() {
            instruments.shard_moves.add(count as u64, &[]);
        }
    }
}

#[cfg(not(feature = "telemetry"))]
mod off {
    use std::time::Duration;

    use outlast_core::ActivityItem;

    use crate::node::node_task::NodeTask;

    pub(crate) fn turn_committed() {}

    pub(crate) struct Commit;

    impl Commit {
        pub(crate) fn begin(_: usize) -> Self {
            Self
        }

        pub(crate) fn done(self) {}
    }

    pub(crate) fn dispatched(_: &[ActivityItem]) {}

    pub(crate) fn redispatched(_: &[ActivityItem]) {}

    pub(crate) fn begun(_: &ActivityItem, _: u64, _: bool) {}

    pub(crate) fn ran(_: &ActivityItem, _: Duration) {}

    pub(crate) fn shards_taken(_: usize) {}

    pub(crate) fn task_failed(_: NodeTask) {}
}
