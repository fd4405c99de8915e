//! Names that programs import, each used as its documentation says.

use std::sync::Arc;
use std::time::Duration;

use outlast::client::{Client, ClientError};
use outlast::providers::management::QueueDepths;
use outlast::providers::{
    DeleteInstanceResult, ExecutionInfo, InstanceFilter, InstanceInfo, InstanceTree, MAX_WORKER_TAGS, Provider,
    ProviderError, PruneOptions, PruneResult, SystemMetrics, TagFilter,
};
use outlast::runtime::observability::ObservabilityConfig;
use outlast::runtime::registry::{ActivityRegistry, OrchestrationRegistry};
use outlast::runtime::{LogFormat, Runtime, RuntimeOptions, VersionPolicy, limits};
use outlast::{
    ActivityContext, BackoffStrategy, Event, OrchestrationContext, OrchestrationDescriptor, OrchestrationStatus,
    ProviderRef, RetryPolicy,
};

use crate::model::world::{SOON, World, activities, options, orchestration};
use crate::place::Place;

#[tokio::test]
async fn a_default_version_changes_while_the_runtime_runs() {
    let code = |ctx: OrchestrationContext, _: String| async move { Ok(ctx.orchestration_version()) };
    let registry = OrchestrationRegistry::builder()
        .register_versioned("Job", "1.0.0", code)
        .register_versioned("Job", "2.0.0", code)
        .build();
    let place = Place::default();
    let provider = place.open().await;
    let client = Client::new(Arc::clone(&provider));
    let runtime = Runtime::start_with_options(provider, activities().build(), registry.clone(), options()).await;
    let run = async |id: &str| {
        client.start_orchestration(id, "Job", "").await.unwrap();
        match client.wait_for_orchestration(id, SOON).await.unwrap() {
            OrchestrationStatus::Completed { output, .. } => output,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(run("a").await, "2.0.0");
    let first = semver::Version::new(1, 0, 0);
    registry.set_version_policy("Job", VersionPolicy::Exact(first.clone()));
    assert_eq!(run("b").await, "1.0.0");
    assert_eq!(registry.resolve_version("Job"), Some(first.clone()));
    assert_eq!(registry.resolve_handler("Job").map(|(version, _)| version), Some(first));
    registry.set_version_policy("Job", VersionPolicy::Latest);
    assert_eq!(run("c").await, "2.0.0");
    runtime.shutdown(None).await;
}

#[tokio::test]
async fn what_a_runtime_counts_is_what_happened() {
    let registry = OrchestrationRegistry::builder()
        .register("Parent", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_sub_orchestration("Child", "").await
        })
        .register("Child", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_activity("Fail", "not yet").await.unwrap_err();
            ctx.schedule_activity("Echo", "fine").await
        })
        .register("Loop", |ctx: OrchestrationContext, input: String| async move {
            if input == "1" { ctx.continue_as_new("2").await } else { Err("bad".to_owned()) }
        });
    let world = World::start(activities(), registry).await;
    world.run("Parent", "").await.unwrap();
    world.run("Loop", "1").await.unwrap_err();
    // The outcome is told when it is durable, the counts follow at once.
    tokio::time::timeout(SOON, async {
        while world.runtime.metrics_snapshot().orch_failures < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let counts = world.runtime.metrics_snapshot();
    assert_eq!((counts.orch_starts, counts.orch_completions, counts.orch_failures), (3, 2, 1));
    assert_eq!((counts.orch_application_errors, counts.orch_continue_as_new, counts.suborchestration_calls), (1, 1, 1));
    assert_eq!((counts.activity_success, counts.activity_app_errors), (1, 1));
    assert_eq!(counts.worker_dispatcher_items_fetched, 2);
    assert_eq!((counts.orch_poison, counts.activity_poison, counts.orch_infrastructure_errors), (0, 0, 0));
}

#[tokio::test]
async fn a_descriptor_names_the_parent_and_the_event_that_scheduled_the_child() {
    let registry = OrchestrationRegistry::builder()
        .register("Parent", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_activity("Echo", "").await?;
            ctx.schedule_sub_orchestration_with_id("Child", "kid", "").await
        })
        .register("Child", |_: OrchestrationContext, _: String| async move { Ok(String::new()) });
    let world = World::start(activities(), registry).await;
    world.run("Parent", "").await.unwrap();
    let child = world.runtime.get_orchestration_descriptor("kid").await.unwrap();
    let expected = OrchestrationDescriptor {
        name: "Child".to_owned(),
        version: "1.0.0".to_owned(),
        parent_instance: Some("Parent-1".to_owned()),
        parent_id: Some(4),
    };
    assert_eq!(child, expected);
    let tree: InstanceTree = world.client.get_instance_tree("Parent-1").await.unwrap();
    assert_eq!((tree.size(), tree.is_root_only()), (2, false));
    assert!(world.client.get_instance_tree("kid").await.unwrap().is_root_only());
    assert_eq!(world.runtime.get_orchestration_descriptor("nobody").await, None);
}

#[tokio::test]
async fn what_is_not_there_is_empty_or_named() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        ctx.set_kv_value("", "v");
        Ok(ctx.get_kv_value("").unwrap_or_default())
    };
    let world = World::start(activities(), orchestration("Store", code)).await;
    let client = &world.client;
    assert_eq!(world.run("Store", "").await.unwrap(), "v", "an empty key is a key");
    assert_eq!(client.get_kv_value("Store-1", "").await.unwrap().as_deref(), Some("v"));
    assert_eq!(client.get_kv_all_values("Store-1").await.unwrap().len(), 1);
    assert!(client.read_execution_history("nobody", 1).await.unwrap().is_empty());
    assert!(client.read_execution_history("Store-1", 99).await.unwrap().is_empty());
    assert!(client.list_executions("nobody").await.unwrap().is_empty());
    assert!(client.get_kv_all_values("nobody").await.unwrap().is_empty());
    let missing = client.get_execution_info("Store-1", 99).await.unwrap_err();
    assert!(matches!(missing, ClientError::ExecutionNotFound { execution_id: 99, .. }), "{missing}");
    assert!(missing.to_string().contains("Store-1 has no execution 99"), "{missing}");
    let nobody = client.get_execution_info("nobody", 1).await.unwrap_err();
    assert!(matches!(nobody, ClientError::InstanceNotFound { .. }), "{nobody}");
    let fork = client.fork_instance("Store-1", 99, 1, "copy").await.unwrap_err();
    assert!(matches!(fork, ClientError::ExecutionNotFound { execution_id: 99, .. }), "{fork}");
}

#[tokio::test]
async fn all_attempts_together_have_a_time_limit() {
    let code = |ctx: OrchestrationContext, input: String| async move {
        let slow = BackoffStrategy::Fixed { delay: Duration::from_secs(3_600) };
        let policy = match input.as_str() {
            "short" => RetryPolicy::default().with_backoff(slow).with_total_timeout(Duration::from_millis(200)),
            _ => RetryPolicy::default().with_backoff(BackoffStrategy::None).with_total_timeout(SOON),
        };
        ctx.schedule_activity_with_retry("Fail", "still wrong", policy).await
    };
    let world = World::start(activities(), orchestration("Try", code)).await;
    let text = world.run("Try", "short").await.unwrap_err().display_message();
    assert!(text.starts_with("timeout: "), "{text}");
    world.client.start_orchestration("all", "Try", "long").await.unwrap();
    assert_eq!(world.outcome("all").await.unwrap_err().display_message(), "still wrong");
    let history = world.client.read_execution_history("all", 1).await.unwrap();
    let tries = history.iter().filter(|event| format!("{:?}", event.kind).starts_with("ActivityScheduled")).count();
    assert_eq!(tries, 3, "the default policy");
}

#[tokio::test]
#[expect(deprecated, reason = "former names that programs still use")]
async fn former_names_of_queues_work() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let first = ctx.schedule_wait_persistent("words").await;
        let second: String = ctx.schedule_wait_persistent_typed("words").await;
        Ok(format!("{first} {second}"))
    };
    let world = World::start(activities(), orchestration("Words", code)).await;
    world.client.start_orchestration("i", "Words", "").await.unwrap();
    world.client.raise_event_persistent("i", "words", "one").await.unwrap();
    world.client.raise_event_persistent("i", "words", "two").await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), "one two");
    let history: Vec<Event> = world.client.read_execution_history("i", 1).await.unwrap();
    assert_eq!((history[0].event_id(), history[0].source_event_id(), history[0].is_terminal()), (1, None, false));
    assert_eq!(history[2].source_event_id(), Some(2));
    assert!(history.last().is_some_and(Event::is_terminal));
}

#[test]
fn registries_tell_their_errors_as_one_error() {
    let code = |_: OrchestrationContext, input: String| async move { Ok(input) };
    let work = |_: ActivityContext, input: String| async move { Ok(input) };
    let twice = OrchestrationRegistry::builder().register("Job", code).register("Job", code).build_result();
    let Err(error) = twice else { panic!("the name is taken") };
    let error: Box<dyn std::error::Error> = error.into();
    assert!(error.to_string().contains("Job 1.0.0 is registered twice"), "{error}");
    let activities = ActivityRegistry::builder().register("Work", work).build();
    let twice = ActivityRegistry::builder_from(&activities).register("Work", work).build_result();
    assert!(twice.err().is_some_and(|error| error.to_string().contains("Work")));
    let first = semver::Version::new(1, 0, 0);
    assert!(activities.resolve_handler_exact("Work", &first).is_some());
    assert_eq!(activities.resolve_handler("Work").map(|(version, _)| version), Some(first));
}

#[test]
fn options_and_limits_have_their_fields_and_defaults() {
    let observability = ObservabilityConfig {
        log_format: LogFormat::Compact,
        log_level: "info".to_owned(),
        service_name: "orders".to_owned(),
        service_version: Some("1.0.0".to_owned()),
        ..ObservabilityConfig::default()
    };
    let options = RuntimeOptions { worker_tag_filter: TagFilter::none(), observability, ..RuntimeOptions::default() };
    assert_eq!(options.observability.service_name, "orders");
    assert!(!options.worker_tag_filter.matches(None));
    assert!(TagFilter::default_only().matches(None) && !TagFilter::default_only().matches(Some("gpu")));
    assert!(TagFilter::any().matches(Some("gpu")) && TagFilter::any().matches(None));
    assert_eq!((limits::MAX_WORKER_TAGS, MAX_WORKER_TAGS), (5, 5));
    assert_eq!((limits::MAX_KV_KEYS, limits::MAX_KV_VALUE_BYTES), (100, 16 << 10));
    assert_eq!(limits::MAX_CUSTOM_STATUS_BYTES, 256 << 10);
    const { assert!(limits::MAX_TAG_NAME_BYTES >= 256 && limits::MAX_CARRY_FORWARD_EVENTS >= 100) };
    let (base, max) = (Duration::from_millis(100), Duration::from_millis(250));
    let doubling = BackoffStrategy::Exponential { base, multiplier: 2.0, max };
    assert_eq!([1, 2, 3].map(|attempt| doubling.delay_for_attempt(attempt).as_millis()), [100, 200, 250]);
    assert_eq!(BackoffStrategy::default().delay_for_attempt(1), base);
    assert_eq!(RetryPolicy::default().max_attempts, 3);
    assert!(outlast::is_auto_generated_sub_orch_id("sub::5"));
    assert_eq!(outlast::build_child_instance_id("p", "sub::5"), "p::sub::5");
    assert_eq!(outlast::build_child_instance_id("p", "mine"), "mine");
}

#[test]
fn a_provider_error_is_a_client_error_and_says_whether_to_try_again() {
    let error = ProviderError::retryable("start", "the disk is full");
    assert!(error.is_retryable() && error.to_string().contains("the disk is full"));
    assert_eq!(error.to_infrastructure_error().category(), "infrastructure");
    let error = ClientError::from(ProviderError::permanent("start", "no such table"));
    assert!(!error.is_retryable());
    assert!(matches!(&error, ClientError::Provider(inner) if inner.message == "no such table"), "{error}");
}

/// Never called: that it compiles is the claim.
#[expect(dead_code, reason = "signatures only")]
async fn signatures(provider: ProviderRef, client: Client) -> Result<(), ClientError> {
    let _events: Vec<Event> = Provider::read(&*provider, "i").await;
    let _info: InstanceInfo = client.get_instance_info("i").await?;
    let _execution: ExecutionInfo = client.get_execution_info("i", 1).await?;
    let _metrics: SystemMetrics = client.get_system_metrics().await?;
    let _depths: QueueDepths = client.get_queue_depths().await?;
    let _deleted: DeleteInstanceResult = client.delete_instance_bulk(InstanceFilter::default()).await?;
    let _pruned: PruneResult = client.prune_executions("i", PruneOptions::default()).await?;
    let runtime = Runtime::start(ActivityRegistry::default(), OrchestrationRegistry::default()).await;
    runtime.shutdown(None).await;
    Ok(())
}
