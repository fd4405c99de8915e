//! Items, workers and short waits for tests.

use std::time::Duration;

use outlast_broker::{
    Broker, Delivery, Dispatch, Report, ReportReply, Settle, ShardRequest, WorkSource, WorkerProfile,
};
use outlast_core::{
    ActivityItem, ActivityKey, ActivityRef, ActivityTimeouts, EventId, ExecutionId, InstanceId, ShardId, TagFilter,
    Token, WorkerId,
};

/// Long enough for anything that must happen.
pub(crate) const SOON: Duration = Duration::from_secs(15);
/// Long enough to see that something does not happen.
pub(crate) const NEVER: Duration = Duration::from_millis(300);

pub(crate) fn key(instance: &str, event: u64) -> ActivityKey {
    ActivityKey { instance: InstanceId::new(instance), execution: ExecutionId(1), event: EventId(event) }
}

/// The activity that `item` is about.
pub(crate) fn activity(instance: &str, event: u64) -> ActivityRef {
    item(instance, event).activity()
}

pub(crate) fn item(instance: &str, event: u64) -> ActivityItem {
    ActivityItem {
        key: key(instance, event),
        token: Token(event + 1_000),
        name: "charge".to_owned(),
        input: "42".to_owned(),
        input_stored: false,
        tag: None,
        session_id: None,
        attempt: 1,
        scheduled_at: Default::default(),
        timeouts: ActivityTimeouts::default(),
        first_event: EventId(event),
        orchestration: "order".to_owned(),
        version: "1.0.0".to_owned(),
        traceparent: None,
    }
}

pub(crate) fn tagged(instance: &str, event: u64, tag: &str) -> ActivityItem {
    ActivityItem { tag: Some(tag.to_owned()), ..item(instance, event) }
}

pub(crate) fn in_session(instance: &str, event: u64, session: &str) -> ActivityItem {
    ActivityItem { session_id: Some(session.to_owned()), ..item(instance, event) }
}

pub(crate) fn worker(id: &str, filter: TagFilter) -> WorkerProfile {
    WorkerProfile { id: WorkerId::new(id), filter, sessions_max: 10 }
}

pub(crate) async fn publish(broker: &dyn Broker, item: ActivityItem) {
    broker.publish(vec![Dispatch { item, worker: None, again: false }]).await.unwrap();
}

pub(crate) async fn publish_to(broker: &dyn Broker, item: ActivityItem, worker: &str) {
    broker.publish(vec![Dispatch { item, worker: Some(WorkerId::new(worker)), again: false }]).await.unwrap();
}

/// Opens a source whose control messages nobody wants.
pub(crate) async fn open(broker: &dyn Broker, id: &str, filter: TagFilter) -> Box<dyn WorkSource> {
    broker.pull(worker(id, filter)).await.unwrap().0
}

/// The one item that must come.
pub(crate) async fn take(source: &mut Box<dyn WorkSource>) -> Delivery {
    take_within(source, SOON).await.expect("an item comes")
}

pub(crate) async fn take_within(source: &mut Box<dyn WorkSource>, limit: Duration) -> Option<Delivery> {
    let mut taken = tokio::time::timeout(limit, source.next(1)).await.ok()??;
    assert_eq!(taken.len(), 1);
    taken.pop()
}

/// Takes one item that must come and acknowledges it.
pub(crate) async fn run(source: &mut Box<dyn WorkSource>) -> ActivityKey {
    let delivery = take(source).await;
    (delivery.settle)(Settle::Ack);
    delivery.item.key.clone()
}

pub(crate) async fn assert_nothing(source: &mut Box<dyn WorkSource>) {
    let surplus = take_within(source, NEVER).await;
    assert!(surplus.is_none(), "nothing comes, but {:?} came", surplus.map(|delivery| delivery.item.key.clone()));
}

/// Brings a report to the owner of a shard; without an answer it is to be tried again.
pub(crate) async fn report_to(broker: &dyn Broker, shard: ShardId, report: Report) -> ReportReply {
    let replies = broker.request(shard, ShardRequest::Report(Box::new(report))).await;
    replies.first().copied().unwrap_or(ReportReply::TryAgain)
}
