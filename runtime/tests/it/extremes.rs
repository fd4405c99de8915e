//! Every option and limit at its least and at its greatest: it works, or is refused by name before anything starts.
//!
//! The fields are destructured, so that a new one does not compile until it is named here.

use std::sync::Arc;
use std::time::Duration;

use outlast::providers::sqlite::{SqliteOptions, SqliteProvider};
use outlast::runtime::{Runtime, StartError};
use outlast::testing::TestRuntime;
use outlast::{
    ActivityContext, ActivityRegistry, ActivityTimeouts, BackoffStrategy, Client, ClientError, ClientOptions,
    InstanceFilter, Limits, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus, PruneOptions,
    RetryPolicy, RuntimeOptions, UnregisteredBackoffConfig,
};

use crate::place::Place;

const SOON: Duration = Duration::from_secs(20);

/// Two values of a type: its least and its greatest one.
trait Extremes: Sized {
    const BOTH: [Self; 2];
}

macro_rules! extremes {
    ($($number:ty),+) => { $(impl Extremes for $number { const BOTH: [Self; 2] = [<$number>::MIN, <$number>::MAX]; })+ };
}
extremes!(usize, u32, u64);

impl Extremes for Duration {
    const BOTH: [Self; 2] = [Self::ZERO, Self::MAX];
}

/// Options with one field at an extreme, each with the field's name.
macro_rules! variants {
    ($base:expr, $kind:ident { $($field:ident),+ } and { $($other:ident),* }) => {{
        let base: $kind = $base;
        let $kind { $($field: _,)+ $($other: _,)* } = &base;
        let mut all: Vec<(&'static str, $kind)> = Vec::new();
        $(for value in Extremes::BOTH {
            let mut options = base.clone();
            options.$field = value;
            all.push((stringify!($field), options));
        })+
        all
    }};
}

fn limits() -> Vec<(&'static str, Limits)> {
    variants!(Limits::default(), Limits {
        payload_bytes_max, name_bytes_max, kv_keys_max, kv_value_bytes_max, custom_status_bytes_max, error_bytes_max, heartbeat_bytes_max,
        queue_messages_max, commands_per_turn_max, history_events_max, history_bytes_max, warm_instances_max,
        messages_per_turn_max, turns_in_flight_max, commit_group_max, dispatch_window, reports_in_flight_max
    } and {})
}

/// Everything of a runtime that has a number.
#[expect(deprecated, reason = "knobs without effect stay accepted")]
fn runtimes() -> Vec<(&'static str, RuntimeOptions)> {
    let mut all = variants!(RuntimeOptions::default(), RuntimeOptions {
        dispatcher_min_poll_interval, dispatcher_long_poll_timeout, orchestration_concurrency, worker_concurrency,
        orchestrator_lock_timeout, orchestrator_lock_renewal_buffer, worker_lock_timeout, worker_lock_renewal_buffer,
        max_attempts, activity_cancellation_grace_period, session_lock_timeout, session_lock_renewal_buffer,
        session_idle_timeout, session_cleanup_interval, max_sessions_per_runtime, passivate_after
    } and { unregistered_backoff, worker_node_id, worker_tag_filter, observability, limits, show_data_in_errors });
    all.extend(limits().into_iter().map(|(field, limits)| (field, RuntimeOptions { limits, ..Default::default() })));
    let base = UnregisteredBackoffConfig::default();
    let back_offs = variants!(base, UnregisteredBackoffConfig { base_delay, max_delay } and {});
    all.extend(
        back_offs.into_iter().map(|(field, unregistered_backoff)| {
            (field, RuntimeOptions { unregistered_backoff, ..Default::default() })
        }),
    );
    all
}

fn activities() -> ActivityRegistry {
    ActivityRegistry::builder().register("Nothing", |_: ActivityContext, _: String| async { Ok(String::new()) }).build()
}

fn orchestrations() -> OrchestrationRegistry {
    OrchestrationRegistry::builder()
        .register("Work", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_activity("Nothing", "").await?;
            ctx.schedule_timer(Duration::from_millis(1)).await;
            ctx.schedule_activity_on_session("Nothing", "", "s").await
        })
        .register("Rest", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_timer(Duration::from_millis(1)).await;
            Ok(String::new())
        })
        .register("Wait", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_wait("go").await;
            Ok(String::new())
        })
        .register("Unknown", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_activity("NobodyHasIt", "").await
        })
        .build()
}

async fn start(options: RuntimeOptions) -> Result<(Arc<Runtime>, Client), StartError> {
    let provider = Place::default().open().await;
    let client = Client::new(provider.clone());
    Ok((Runtime::try_start(provider, activities(), orchestrations(), options).await?, client))
}

/// Starts one and lets it end.
async fn ends(client: &Client, id: &str, orchestration: &str) -> OrchestrationStatus {
    client.start_orchestration(id, orchestration, "").await.unwrap();
    client.wait_for_orchestration(id, SOON).await.unwrap_or_else(|error| panic!("{orchestration}: {error}"))
}

#[tokio::test]
async fn an_option_of_a_runtime_works_or_is_refused_by_name() {
    let mut refused = Vec::new();
    for (field, options) in runtimes() {
        let (workers, told) = (options.worker_concurrency, format!("{options:?}"));
        let (runtime, client) = match start(options).await {
            Ok(started) => started,
            Err(StartError::Option(error)) => {
                assert!(error.to_string().contains(field), "{field}: {error}");
                refused.push(field);
                continue;
            }
            Err(error) => panic!("{field}: {error}"),
        };
        let code = if workers == 0 { "Rest" } else { "Work" };
        client.start_orchestration("i", code, "").await.unwrap();
        let status = client.wait_for_orchestration("i", SOON).await;
        assert!(matches!(status, Ok(OrchestrationStatus::Completed { .. })), "{field}: {status:?} ({told})");
        // Whatever it does about names that nobody has: others are not held up.
        client.start_orchestration("unknown", "Unknown", "").await.unwrap();
        client.start_orchestration("nobody", "NobodyHasIt", "").await.unwrap();
        client.start_orchestration("again", code, "").await.unwrap();
        let status = client.wait_for_orchestration("again", SOON).await;
        assert!(matches!(status, Ok(OrchestrationStatus::Completed { .. })), "{field}: {status:?} ({told})");
        runtime.shutdown(Some(0)).await;
    }
    refused.sort_unstable();
    let by_nothing = [
        "commands_per_turn_max",
        "commit_group_max",
        "dispatch_window",
        "history_bytes_max",
        "history_events_max",
        "max_sessions_per_runtime",
        "messages_per_turn_max",
        "name_bytes_max",
        "reports_in_flight_max",
        "turns_in_flight_max",
        "warm_instances_max",
    ];
    assert_eq!(refused, by_nothing);
}

#[tokio::test]
async fn the_starter_that_panics_says_which_option_is_wrong() {
    let options = RuntimeOptions { max_sessions_per_runtime: 0, ..RuntimeOptions::default() };
    let provider = Place::default().open().await;
    let started = tokio::spawn(Runtime::start_with_options(provider, activities(), orchestrations(), options));
    let Err(panic) = started.await else { panic!("it cannot take sessions") };
    let panic = panic.into_panic();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("RuntimeOptions::max_sessions_per_runtime is 0"), "{text}");
}

#[tokio::test]
async fn an_option_of_a_client_works_or_its_calls_are_refused_by_name() {
    let provider = Place::default().open().await;
    let runtime =
        Runtime::start_with_options(provider.clone(), activities(), orchestrations(), RuntimeOptions::default()).await;
    let mut all = variants!(ClientOptions::default(), ClientOptions { call_timeout, poll_interval } and { limits });
    all.extend(limits().into_iter().map(|(field, limits)| (field, ClientOptions { limits, ..Default::default() })));
    for (n, (field, options)) in all.into_iter().enumerate() {
        let client = Client::with_options(provider.clone(), options);
        match client.start_orchestration(format!("i{n}"), "Work", "").await {
            Ok(()) => {}
            Err(ClientError::InvalidInput { message }) if field == "name_bytes_max" => {
                assert!(message.contains("must have 1 to 0 bytes"), "{message}");
                continue;
            }
            Err(error) => panic!("{field}: {error}"),
        }
        let status = client.wait_for_orchestration(&format!("i{n}"), Duration::MAX).await;
        assert!(matches!(status, Ok(OrchestrationStatus::Completed { .. })), "{field}: {status:?}");
    }
    runtime.shutdown(Some(u64::MAX)).await;
}

#[tokio::test]
async fn waits_of_every_length_end_as_they_should() {
    let (_runtime, client) = start(RuntimeOptions::default()).await.unwrap();
    client.start_orchestration("i", "Wait", "").await.unwrap();
    let timeout = |result: Result<_, ClientError>| matches!(result, Err(ClientError::Timeout));
    assert!(timeout(client.wait_for_orchestration("i", Duration::ZERO).await));
    assert!(timeout(client.wait_for_kv_value("i", "k", Duration::ZERO).await.map(|_| unreachable!("no value"))));
    for poll in Duration::BOTH {
        assert!(timeout(client.wait_for_status_change("i", u64::MAX, poll, Duration::from_millis(20)).await));
    }
    let waiting = client.wait_for_orchestration("i", Duration::MAX);
    let (ended, raised) = tokio::join!(waiting, client.raise_event("i", "go", ""));
    raised.unwrap();
    assert!(ended.unwrap().is_terminal());
    for poll in Duration::BOTH {
        assert!(client.wait_for_status_change("i", u64::MAX, poll, Duration::MAX).await.unwrap().is_terminal());
    }
    assert!(client.read_execution_history("i", u64::MAX).await.is_ok_and(|events| events.is_empty()));
    assert!(client.get_execution_info("i", u64::MAX).await.is_err());
}

#[tokio::test]
async fn deadlines_of_every_length_are_kept() {
    let provider = Place::default().open().await;
    let client = Client::new(provider.clone());
    let code = |ctx: OrchestrationContext, _: String| async move {
        let far = ActivityTimeouts::new().schedule_to_start(Duration::MAX).start_to_close(Duration::MAX);
        ctx.schedule_activity("Nothing", "").with_timeouts(far.heartbeat(Duration::MAX)).await?;
        let policy = RetryPolicy::new(1).with_timeout(Duration::MAX);
        ctx.schedule_activity_with_retry("Nothing", "", policy).await?;
        let late = [
            ctx.schedule_activity("Never", "").with_start_to_close(Duration::ZERO).await,
            ctx.schedule_activity("Never", "").with_heartbeat_timeout(Duration::ZERO).await,
            ctx.schedule_activity("Never", "").with_tag("nobody").with_schedule_to_start(Duration::ZERO).await,
        ];
        let (timeout, total_timeout) = (Some(Duration::ZERO), Some(Duration::MAX));
        let never = RetryPolicy { max_attempts: 0, timeout, total_timeout, backoff: BackoffStrategy::None };
        let none = ctx.schedule_activity_with_retry("Never", "", never).await;
        let all = late.into_iter().chain([none]);
        Ok(all.filter(|result| result.as_ref().is_err_and(|error| error.contains("timeout"))).count().to_string())
    };
    let never = |_: ActivityContext, _: String| std::future::pending();
    let activities = ActivityRegistry::builder()
        .register("Nothing", |_: ActivityContext, _: String| async { Ok(String::new()) })
        .register("Never", never)
        .build();
    let orchestrations = OrchestrationRegistry::builder().register("Deadlines", code).build();
    let options = RuntimeOptions { activity_cancellation_grace_period: Duration::ZERO, ..RuntimeOptions::default() };
    let _runtime = Runtime::start_with_options(provider, activities, orchestrations, options).await;
    let status = ends(&client, "i", "Deadlines").await;
    assert!(matches!(&status, OrchestrationStatus::Completed { output, .. } if output == "4"), "{status:?}");
}

#[tokio::test]
async fn the_virtual_time_moves_on_by_every_length() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        ctx.schedule_timer(Duration::ZERO).await;
        ctx.schedule_activity("Nothing", "").await?;
        ctx.schedule_timer(Duration::MAX).await;
        Ok(String::new())
    };
    let far = OrchestrationRegistry::builder_from(&orchestrations()).register("Far", code).build();
    let world = TestRuntime::start(activities(), far).await.unwrap();
    world.client().start_orchestration("i", "Far", "").await.unwrap();
    world.advance(Duration::ZERO).await.unwrap();
    assert!(!world.client().get_orchestration_status("i").await.unwrap().is_terminal());
    world.advance(Duration::MAX).await.unwrap();
    assert!(world.client().get_orchestration_status("i").await.unwrap().is_terminal());
    // What is started at the end of time still runs.
    world.client().start_orchestration("late", "Far", "").await.unwrap();
    world.advance(Duration::MAX).await.unwrap();
    assert!(world.run_to_end("late").await.unwrap().is_terminal());
    world.shutdown().await;
}

#[test]
fn every_back_off_has_a_delay_for_every_attempt() {
    let mut strategies = vec![BackoffStrategy::None];
    for base in Duration::BOTH {
        strategies.push(BackoffStrategy::Fixed { delay: base });
        for max in Duration::BOTH {
            strategies.push(BackoffStrategy::Linear { base, max });
            for multiplier in [0.0, -1.0, 1.0, f64::MAX, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
                strategies.push(BackoffStrategy::Exponential { base, multiplier, max });
            }
        }
    }
    for backoff in strategies {
        match &backoff {
            BackoffStrategy::None
            | BackoffStrategy::Fixed { delay: _ }
            | BackoffStrategy::Linear { base: _, max: _ }
            | BackoffStrategy::Exponential { base: _, multiplier: _, max: _ } => {}
        }
        let policy = RetryPolicy::new(u32::MAX).with_backoff(backoff.clone());
        for attempt in [0, 1, 2, u32::MAX] {
            let delay = policy.delay_for_attempt(attempt);
            if let BackoffStrategy::Linear { max, .. } | BackoffStrategy::Exponential { max, .. } = &backoff {
                assert!(delay <= *max, "{backoff:?}: {delay:?}");
            }
        }
    }
}

#[tokio::test]
async fn bulk_calls_take_every_number() {
    let (_runtime, client) = start(RuntimeOptions::default()).await.unwrap();
    ends(&client, "i", "Work").await;
    let prunes = variants!(PruneOptions::default(), PruneOptions { keep_last, completed_before } and {});
    for (field, options) in prunes {
        client.prune_executions("i", options.clone()).await.unwrap_or_else(|error| panic!("{field}: {error}"));
        let pruned = client.prune_executions_bulk(InstanceFilter::default(), options).await;
        assert_eq!(pruned.unwrap_or_else(|error| panic!("{field}: {error}")).executions_deleted, 0);
    }
    let InstanceFilter { instance_ids: _, completed_before: _, limit: _ } = InstanceFilter::default();
    let delete = async |completed_before, limit| {
        let filter = InstanceFilter { completed_before, limit, ..InstanceFilter::default() };
        client.delete_instance_bulk(filter).await.unwrap().instances_deleted
    };
    assert_eq!(delete(Some(0), None).await, 0);
    assert_eq!(delete(None, Some(0)).await, 0);
    assert_eq!(delete(Some(u64::MAX), Some(u32::MAX)).await, 1);
}

impl Extremes for Option<u32> {
    const BOTH: [Self; 2] = [Some(0), Some(u32::MAX)];
}

impl Extremes for Option<u64> {
    const BOTH: [Self; 2] = [Some(0), Some(u64::MAX)];
}

#[tokio::test]
async fn the_store_in_a_file_has_no_number_to_get_wrong() {
    let SqliteOptions {} = SqliteOptions::default();
    SqliteProvider::new_in_memory().await.unwrap();
}
