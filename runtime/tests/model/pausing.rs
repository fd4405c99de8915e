//! That an instance is paused is seen wherever instances are looked at.

use outlast::{OrchestrationContext, OrchestrationStatus};

use crate::model::world::{World, activities, orchestration};

/// The status of an instance in its metadata, waited for, as pausing takes a turn.
async fn status(world: &World, expected: &str) {
    for _ in 0..2_000 {
        let info = world.client.get_instance_info("i").await.unwrap();
        if info.status == expected {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("the instance has not become {expected}");
}

#[tokio::test]
async fn a_paused_instance_is_paused_in_status_lists_and_counts_until_it_goes_on() {
    let code = |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("go").await) };
    let world = World::start(activities(), orchestration("Wait", code)).await;
    let client = &world.client;
    client.start_orchestration("i", "Wait", "").await.unwrap();
    client.start_orchestration("other", "Wait", "").await.unwrap();
    world.events("i", 2).await;
    assert!(!client.is_paused("i").await.unwrap());

    client.pause_instance("i").await.unwrap();
    status(&world, "Paused").await;
    assert!(client.is_paused("i").await.unwrap());
    assert_eq!(client.get_execution_info("i", 1).await.unwrap().status, "Paused");
    assert_eq!(client.list_instances_by_status("paused").await.unwrap(), ["i"]);
    assert_eq!(client.list_instances_by_status("Running").await.unwrap(), ["other"]);
    let metrics = client.get_system_metrics().await.unwrap();
    assert_eq!((metrics.total_instances, metrics.running_instances, metrics.paused_instances), (2, 2, 1));
    let status_of = client.get_orchestration_status("i").await.unwrap();
    assert!(matches!(status_of, OrchestrationStatus::Running { .. }), "programs match on four states");

    client.resume_instance("i").await.unwrap();
    status(&world, "Running").await;
    assert_eq!(client.get_execution_info("i", 1).await.unwrap().status, "Running");

    client.pause_instance("i").await.unwrap();
    status(&world, "Paused").await;
    client.cancel_instance("i", "enough").await.unwrap();
    world.outcome("i").await.unwrap_err();
    assert_eq!(client.get_instance_info("i").await.unwrap().status, "Failed");
    assert!(!client.is_paused("i").await.unwrap(), "what has ended is not paused");
    assert_eq!(client.get_system_metrics().await.unwrap().paused_instances, 0);
}
