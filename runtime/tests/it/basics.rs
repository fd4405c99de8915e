//! The smallest real paths.

use std::sync::Arc;
use std::time::Duration;

use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{
    ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus,
};

#[tokio::test]
async fn hello_runs_from_start_to_output() {
    let store = Arc::new(SqliteProvider::new_in_memory().await.unwrap());
    let activities = ActivityRegistry::builder()
        .register("Greet", |_: ActivityContext, name: String| async move { Ok(format!("Hello, {name}!")) })
        .build();
    let orchestrations = OrchestrationRegistry::builder()
        .register("Hello", |ctx: OrchestrationContext, name: String| async move {
            let greeting = ctx.schedule_activity("Greet", name).await?;
            ctx.schedule_timer(Duration::from_millis(50)).await;
            Ok(greeting)
        })
        .build();
    let runtime = Runtime::start_with_store(store.clone(), activities, orchestrations).await;
    let client = Client::new(store);
    client.start_orchestration("a", "Hello", "World").await.unwrap();
    let status = client.wait_for_orchestration("a", Duration::from_secs(5)).await.unwrap();
    let OrchestrationStatus::Completed { output, .. } = status else { panic!("{status:?}") };
    assert_eq!(output, "Hello, World!");
    runtime.shutdown(None).await;
}
