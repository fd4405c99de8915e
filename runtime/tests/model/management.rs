//! Listing, deleting, pruning, pausing and forking.

use outlast::{
    ActivityContext, ClientError, OrchestrationContext, OrchestrationRegistry, PruneOptions, StartConflict,
    StartOptions, StartOutcome,
};

use crate::model::world::{World, activities, orchestration};

#[tokio::test]
async fn instances_are_listed_inspected_and_deleted() {
    let registry = OrchestrationRegistry::builder()
        .register(
            "Ok",
            |ctx: OrchestrationContext, input: String| async move { ctx.schedule_activity("Echo", input).await },
        )
        .register("Bad", |_: OrchestrationContext, _: String| async move { Err("bad".to_owned()) })
        .register("Wait", |ctx: OrchestrationContext, _: String| async move { Ok(ctx.schedule_wait("go").await) });
    let world = World::start(activities(), registry).await;
    let client = &world.client;
    world.run("Ok", "x").await.unwrap();
    world.run("Bad", "").await.unwrap_err();
    client.start_orchestration("w", "Wait", "").await.unwrap();
    world.events("w", 2).await;
    assert_eq!(client.list_instances_by_status("Failed").await.unwrap(), ["Bad-1"]);
    assert_eq!(client.list_all_instances().await.unwrap().len(), 3);
    let info = client.get_instance_info("Ok-1").await.unwrap();
    assert_eq!((info.status.as_str(), info.output.as_deref()), ("Completed", Some("x")));
    assert_eq!(client.get_execution_info("Ok-1", 1).await.unwrap().event_count, 4);
    let metrics = client.get_system_metrics().await.unwrap();
    assert_eq!((metrics.total_instances, metrics.running_instances, metrics.completed_instances), (3, 1, 1));
    assert_eq!(client.get_orchestration_stats("Ok-1").await.unwrap().unwrap().history_event_count, 4);
    assert!(matches!(client.delete_instance("w", false).await, Err(ClientError::InstanceStillRunning { .. })));
    assert_eq!(client.delete_instance("Ok-1", false).await.unwrap().events_deleted, 4);
    assert!(matches!(client.get_instance_info("Ok-1").await, Err(ClientError::InstanceNotFound { .. })));
    for word in ["odd", "Cancelled", "ContinuedAsNew", ""] {
        assert!(client.list_instances_by_status(word).await.unwrap().is_empty(), "no instance is {word:?}");
    }
}

#[tokio::test]
async fn old_executions_are_pruned_and_the_current_one_stays() {
    let code = |ctx: OrchestrationContext, input: String| async move {
        let n: u32 = input.parse().map_err(|_| "number".to_owned())?;
        if n < 5 { ctx.continue_as_new((n + 1).to_string()).await } else { Ok("end".to_owned()) }
    };
    let world = World::start(activities(), orchestration("Loop", code)).await;
    world.run("Loop", "1").await.unwrap();
    let pruned =
        world.client.prune_executions("Loop-1", PruneOptions { keep_last: Some(2), ..PruneOptions::default() });
    assert_eq!(pruned.await.unwrap().executions_deleted, 3);
    assert_eq!(world.client.list_executions("Loop-1").await.unwrap(), [4, 5]);
}

#[tokio::test]
async fn a_paused_instance_keeps_results_and_messages_until_it_is_resumed() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let word = ctx.dequeue_event("words").await;
        ctx.schedule_activity("Echo", word).await
    };
    let world = World::start(activities(), orchestration("Pausing", code)).await;
    world.client.start_orchestration("i", "Pausing", "").await.unwrap();
    world.events("i", 2).await;
    world.client.pause_instance("i").await.unwrap();
    world.client.enqueue_event("i", "words", "kept").await.unwrap();
    world.events("i", 3).await;
    assert_eq!(world.client.read_execution_history("i", 1).await.unwrap().len(), 3);
    world.client.resume_instance("i").await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), "kept");
}

#[tokio::test]
async fn a_fork_goes_on_by_itself_and_a_bad_place_is_refused_with_a_better_one() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let first = ctx.schedule_activity("Echo", "a").await?;
        let word = ctx.schedule_wait("word").await;
        Ok(format!("{first}{word}"))
    };
    let world = World::start(activities(), orchestration("Forked", code)).await;
    world.client.start_orchestration("i", "Forked", "").await.unwrap();
    world.events("i", 4).await;
    let refused = world.client.fork_instance("i", 1, 3, "fork").await.unwrap_err();
    assert!(refused.to_string().contains("nearest event that allows it is 2"), "{refused}");
    world.client.fork_instance("i", 1, 4, "fork").await.unwrap();
    world.client.fork_instance("i", 1, 2, "anew").await.unwrap();
    world.events("anew", 4).await;
    for (id, word) in [("i", "1"), ("fork", "2"), ("anew", "3")] {
        world.client.raise_event(id, "word", word).await.unwrap();
        assert_eq!(world.outcome(id).await.unwrap(), format!("a{word}"));
    }
}

#[tokio::test]
async fn a_fork_at_the_event_before_the_end_runs_and_draws_ids_of_its_own() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let before = ctx.new_guid().await?;
        ctx.schedule_activity("Echo", &before).await?;
        let kept = ctx.schedule_timer(std::time::Duration::MAX);
        ctx.schedule_wait("go").await;
        drop(kept);
        Ok(format!("{before} {} {}", ctx.new_guid().await?, ctx.instance_id()))
    };
    let world = World::start(activities(), orchestration("Forked", code)).await;
    world.client.start_orchestration("i", "Forked", "").await.unwrap();
    world.events("i", 5).await;
    world.client.raise_event("i", "go", "").await.unwrap();
    let original = world.outcome("i").await.unwrap();
    let last = world.client.read_execution_history("i", 1).await.unwrap().len() as u64;
    let refused = world.client.fork_instance("i", 1, last, "fork").await.unwrap_err().to_string();
    assert!(refused.contains(&format!("the nearest event that allows it is {}", last - 1)), "{refused}");
    let refused = world.client.fork_instance("i", 1, 1, "fork").await.unwrap_err().to_string();
    assert!(refused.contains("the nearest event that allows it is 2"), "{refused}");
    for (id, at) in [("fork", last - 1), ("other", last - 1), ("early", last - 2)] {
        world.client.fork_instance("i", 1, at, id).await.unwrap();
        if id == "early" {
            world.client.raise_event(id, "go", "").await.unwrap();
        }
    }
    let mut drawn = vec![original.clone()];
    for id in ["fork", "other", "early"] {
        let output = world.outcome(id).await.unwrap();
        assert_eq!(output.split(' ').next(), original.split(' ').next(), "the copied part is the same");
        assert_eq!(output.split(' ').next_back(), Some(id));
        drawn.push(output);
    }
    let mut guids: Vec<&str> = drawn.iter().filter_map(|output| output.split(' ').nth(1)).collect();
    guids.sort_unstable();
    guids.dedup();
    assert_eq!(guids.len(), 4, "{drawn:?}");
}

#[tokio::test]
async fn a_start_may_end_what_runs_under_its_id_and_begin_anew() {
    let registry = OrchestrationRegistry::builder()
        .register("Hold", |ctx: OrchestrationContext, _: String| async move {
            ctx.set_kv_value("left", "over");
            ctx.schedule_activity("Sleep", "").await
        })
        .register("Next", |ctx: OrchestrationContext, input: String| async move {
            Ok(format!("{input} {:?}", ctx.get_kv_value("left")))
        });
    let sleep = |ctx: ActivityContext, _: String| async move {
        ctx.cancelled().await;
        Err("told to stop".to_owned())
    };
    let world = World::start(activities().register("Sleep", sleep), registry).await;
    let client = &world.client;
    client.start_orchestration("i", "Hold", "").await.unwrap();
    world.events("i", 3).await;
    let anew = |input: &str, on_conflict| StartOptions {
        instance: "i".to_owned(),
        orchestration: "Next".to_owned(),
        input: input.to_owned(),
        on_conflict,
        ..StartOptions::default()
    };
    let refused = client.start_with(anew("a", StartConflict::Fail)).await;
    assert!(matches!(refused, Err(ClientError::InstanceExists { .. })), "{refused:?}");
    // Once over a running instance, once over an ended one.
    for (input, executions) in [("b", 2), ("c", 3)] {
        let outcome = client.start_with(anew(input, StartConflict::TerminateExisting)).await.unwrap();
        assert_eq!(outcome, StartOutcome::Replaced);
        for _ in 0..1_000 {
            if client.list_executions("i").await.unwrap().len() == executions {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(world.outcome("i").await.unwrap(), format!("{input} None"));
    }
    let first = client.get_execution_info("i", 1).await.unwrap();
    assert_eq!(first.status, "Failed");
    assert_eq!(client.get_kv_all_values("i").await.unwrap().len(), 0);
}
