//! Every number in the options of a cluster at its least and at its greatest: it works, or is refused by name at the connect.

use std::sync::Arc;
use std::time::Duration;

use outlast::providers::cluster::{ClusterOptions, ClusterProvider, JetStreamOptions, PostgresOptions};
use outlast::runtime::Runtime;
use outlast::{ActivityContext, ActivityRegistry, Client, OrchestrationContext, OrchestrationRegistry, RuntimeOptions};

use crate::node::{Cluster, PATIENCE};

/// Options with one field at an extreme, each with the field's name.
fn variants() -> Vec<(&'static str, ClusterOptions)> {
    let base = || {
        let cluster = Cluster::shared();
        let mut options = ClusterOptions::new(&cluster.postgres, &cluster.nats);
        options.postgres.connections = 4;
        options
    };
    // Without `..`: a new option does not compile until it is named here.
    let ClusterOptions { postgres_url: _, postgres, nats } = base();
    let PostgresOptions { schema: _, lease: _, shards: _, connections: _, migrate: _ } = postgres;
    let JetStreamOptions {
        servers: _,
        namespace: _,
        auth: _,
        tls: _,
        ack_wait: _,
        memory_storage: _,
        unused_tag_kept: _,
        replicas: _,
    } = nats;
    let mut all = Vec::new();
    let mut add = |field, set: &dyn Fn(&mut ClusterOptions)| {
        let mut options = base();
        set(&mut options);
        all.push((field, options));
    };
    for duration in [Duration::ZERO, Duration::MAX] {
        add("PostgresOptions::lease", &|options| options.postgres.lease = duration);
        add("JetStreamOptions::ack_wait", &|options| options.nats.ack_wait = duration);
        add("JetStreamOptions::unused_tag_kept", &|options| options.nats.unused_tag_kept = duration);
    }
    for most in [false, true] {
        add("PostgresOptions::shards", &|options| options.postgres.shards = if most { u16::MAX } else { 0 });
        add("PostgresOptions::connections", &|options| options.postgres.connections = if most { u32::MAX } else { 0 });
        add("JetStreamOptions::replicas", &|options| options.nats.replicas = if most { usize::MAX } else { 0 });
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn an_option_of_a_cluster_works_or_is_refused_by_name() {
    let mut works = Vec::new();
    for (number, (field, options)) in variants().into_iter().enumerate() {
        let namespace = format!("{}_{number}", Cluster::shared().namespace);
        let provider = match ClusterProvider::connect(options.namespace(&namespace)).await {
            Ok(provider) => Arc::new(provider),
            Err(error) => {
                assert!(error.to_string().contains(field), "{field}: {error}");
                continue;
            }
        };
        works.push(field);
        let activities = ActivityRegistry::builder()
            .register("Nothing", |_: ActivityContext, _: String| async { Ok(String::new()) })
            .build();
        let code = |ctx: OrchestrationContext, _: String| async move { ctx.schedule_activity("Nothing", "").await };
        let code = OrchestrationRegistry::builder().register("Work", code).build();
        let client = Client::new(provider.clone());
        let runtime = Runtime::start_with_options(provider, activities, code, RuntimeOptions::default()).await;
        client.start_orchestration("i", "Work", "").await.unwrap();
        let status = client.wait_for_orchestration("i", PATIENCE).await;
        assert!(status.is_ok_and(|status| status.is_terminal()), "{field}");
        runtime.shutdown(Some(0)).await;
    }
    assert_eq!(works, ["JetStreamOptions::unused_tag_kept"; 2]);
}
