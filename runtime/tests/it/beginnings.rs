//! The first turn of an instance: from what its start has told, and harmless when that was told late or twice.

use std::sync::Arc;
use std::time::Duration;

use outlast::providers::Provider;
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus,
};
use outlast_broker::ShardNotice;
use outlast_core::{InboxSeq, InstanceId, Message, MessageKind, ShardId, StartMessage, StartSnapshot};

const PATIENCE: Duration = Duration::from_secs(20);

async fn world() -> (Arc<SqliteProvider>, Arc<Runtime>, Client) {
    let provider = Arc::new(SqliteProvider::new_in_memory().await.unwrap());
    let echo = |_: ActivityContext, input: String| async move { Ok(input) };
    let hello = |ctx: OrchestrationContext, input: String| async move { ctx.schedule_activity("Echo", input).await };
    let activities = ActivityRegistry::builder().register("Echo", echo).build();
    let orchestrations = OrchestrationRegistry::builder().register("Hello", hello).build();
    let runtime = Runtime::start_with_store(provider.clone(), activities, orchestrations).await;
    let client = Client::new(provider.clone());
    (provider, runtime, client)
}

async fn output(client: &Client, id: &str) -> String {
    match client.wait_for_orchestration(id, PATIENCE).await.unwrap() {
        OrchestrationStatus::Completed { output, .. } => output,
        other => panic!("{id}: {other:?}"),
    }
}

#[tokio::test]
async fn a_new_instance_begins_without_a_read() {
    let (_, runtime, client) = world().await;
    for number in 0..20 {
        let id = format!("i{number}");
        client.start_orchestration(&id, "Hello", &id).await.unwrap();
        assert_eq!(output(&client, &id).await, id);
    }
    // The one look of the take-over may have found an instance before its own news did.
    assert!(runtime.metrics_snapshot().hydrations <= 1);
}

#[tokio::test]
async fn a_beginning_that_is_told_late_changes_nothing() {
    let (provider, runtime, client) = world().await;
    client.start_orchestration("i", "Hello", "one").await.unwrap();
    assert_eq!(output(&client, "i").await, "one");
    let before = client.read_execution_history("i", 1).await.unwrap();
    // Memory that still knows the instance would not believe what follows.
    while runtime.metrics_snapshot().warm_instances > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let instance = InstanceId::new("i");
    let start = StartMessage {
        name: "Hello".to_owned(),
        version: None,
        input: "two".to_owned(),
        parent: None,
        traceparent: None,
    };
    let message = Message { id: "late".into(), kind: MessageKind::Start(start) };
    let shard = ShardId::of(&instance, provider.store().shards());
    for seq in 1..=3 {
        let (instance, message) = (instance.clone(), message.clone());
        provider
            .broker()
            .notify(shard, ShardNotice::Started(Box::new(StartSnapshot { instance, message, seq: InboxSeq(seq) })));
    }
    while runtime.metrics_snapshot().commits_failed == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    client.start_orchestration("next", "Hello", "three").await.unwrap();
    assert_eq!(output(&client, "next").await, "three");
    assert_eq!(client.read_execution_history("i", 1).await.unwrap(), before);
    assert_eq!(output(&client, "i").await, "one");
}

#[tokio::test]
async fn a_wait_after_a_deletion_does_not_see_the_former_life() {
    let (_, _runtime, client) = world().await;
    for round in 0..20 {
        client.start_orchestration("i", "Hello", format!("{round}")).await.unwrap();
        assert_eq!(output(&client, "i").await, format!("{round}"));
        client.delete_instance("i", false).await.unwrap();
    }
}
