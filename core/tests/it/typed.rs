//! What typed calls write, and that a history from before texts were written plainly is followed to its end.

use outlast_core::{
    Event, EventKind, HistoryEvent, InstanceStatus, MessageKind, OrchestrationContext, OrchestrationRegistry,
    OrchestrationStatus, RetryPolicy, check_replay,
};

use crate::harness::{Bench, start};

/// What `typed` did when texts were still written as JSON, exported by the program of that time.
const RECORDED: &str = include_str!("golden/typed_texts_as_json.json");

async fn typed(ctx: OrchestrationContext, name: String) -> Result<String, String> {
    ctx.set_kv_value_typed("name", &name);
    let first: String = ctx.schedule_activity_typed("Echo", &name).await?;
    let second: String = ctx.schedule_activity_on_session_typed("Echo", &first, "session").await?;
    let third: String = ctx.schedule_activity_with_retry_typed("Echo", &second, RetryPolicy::new(2)).await?;
    ctx.schedule_orchestration_typed("other", "other-1", &third);
    let word: String = ctx.schedule_wait_typed("word").await;
    let next: String = ctx.dequeue_event_typed("words").await;
    let child: String = ctx.schedule_sub_orchestration_typed("child", &next).await?;
    let stored = ctx.get_kv_value("name").unwrap_or_default();
    Ok(format!("{stored} {word} {child}"))
}

fn registry() -> OrchestrationRegistry {
    OrchestrationRegistry::builder().register_typed("typed", typed).build()
}

/// Runs `typed` with these texts as the outside's answers, in order.
fn run(bench: &mut Bench, [input, result, word, next, child]: [&str; 5]) {
    bench.send(start("typed", input));
    for event in [3, 5, 7] {
        let result = bench.result(event, Ok(result)).unwrap();
        bench.turn(vec![result]);
    }
    bench.send(MessageKind::Raise { name: "word".to_owned(), data: word.to_owned() });
    bench.send(MessageKind::Enqueue { queue: "words".to_owned(), data: next.to_owned() });
    let (event, token) = bench
        .history
        .iter()
        .find_map(|e| match &e.kind {
            EventKind::SubOrchestrationScheduled { token, .. } => Some((e.event_id, *token)),
            _ => None,
        })
        .unwrap();
    let (execution, result) = (bench.state.execution, Ok(child.to_owned()));
    bench.send(MessageKind::ChildDone { execution, event, token, result });
}

fn recorded() -> Vec<Event> {
    serde_json::from_str(RECORDED).unwrap()
}

#[test]
fn a_history_of_before_is_followed_to_its_end() {
    assert_eq!(check_replay(&registry(), &recorded()), Ok(()));
}

#[test]
fn an_instance_that_was_begun_before_goes_on_by_its_own_rules() {
    let events = recorded();
    for kept in 1..events.len() {
        let mut bench = Bench::new(registry());
        let stored = |event: &Event| HistoryEvent {
            event_id: outlast_core::EventId(event.event_id),
            source_event_id: event.source_event_id.map(outlast_core::EventId),
            message_id: None,
            at: outlast_core::Millis(event.timestamp_ms),
            kind: event.kind.clone(),
        };
        bench.history = events[..kept].iter().map(stored).collect();
        // A turn ends where an outcome follows: the code answers each at once.
        if events[kept].source_event_id.is_none() {
            continue;
        }
        bench.state.orchestration = "typed".to_owned();
        bench.state.version = "1.0.0".to_owned();
        bench.state.last_event_id = outlast_core::EventId(kept as u64);
        bench.cold();
        bench.turn(Vec::new());
        assert_eq!(bench.state.status, InstanceStatus::Running, "after {kept} events: {:?}", bench.state.output);
    }
}

#[test]
fn a_new_history_has_texts_as_they_are_and_reads_them_as_json_first() {
    let mut bench = Bench::new(registry());
    run(&mut bench, ["Bob", "\"Bob\"", "w", "null", "5"]);
    let inputs: Vec<&str> = bench
        .history
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::ActivityScheduled { input, .. }
            | EventKind::OrchestrationChained { input, .. }
            | EventKind::SubOrchestrationScheduled { input, .. } => Some(input.as_str()),
            EventKind::KeyValueSet { value, .. } => Some(value),
            _ => None,
        })
        .collect();
    assert_eq!(inputs, ["Bob", "Bob", "Bob", "Bob", "Bob", "null"]);
    let OrchestrationStatus::Completed { output, .. } = bench.state.to_status() else {
        panic!("{:?}", bench.state.output)
    };
    assert_eq!(output, "Bob w 5");
    assert_eq!(check_replay(&registry(), &bench.exported()), Ok(()), "by the rules that its first event names");
}

#[derive(Debug, serde::Deserialize, serde::Serialize)]
struct Order {
    x: u32,
}

/// Reads everything as something that it is not, and puts the errors into the names of activities and a status.
async fn misfits(ctx: OrchestrationContext, _: String) -> Result<String, String> {
    ctx.set_kv_value("key", "{}");
    let value = ctx.get_kv_value_typed::<Order>("key").unwrap_err();
    let retried = ctx.schedule_activity_with_retry_typed::<_, Order>("Retried", &1, RetryPolicy::new(1));
    let results = [
        ctx.schedule_activity_typed::<_, Order>("Charge", &1).await.unwrap_err(),
        ctx.schedule_activity_on_session_typed::<_, Order>("Pay", &1, "s").await.unwrap_err(),
        retried.await.unwrap_err(),
        ctx.schedule_sub_orchestration_typed::<_, Order>("Child", &1).await.unwrap_err(),
        ctx.schedule_activity_typed::<_, Order>("Unwritten", &unwritable()).await.unwrap_err(),
    ];
    // A command that replay compares.
    ctx.schedule_activity("Report", results.join("\n")).await?;
    Ok([value].into_iter().chain(results).collect::<Vec<_>>().join("\n"))
}

/// JSON has no keys like these.
fn unwritable() -> std::collections::BTreeMap<(u8, u8), u8> {
    [((0, 0), 0)].into()
}

/// Runs `misfits` by the rules of `before`, or else by those of new executions.
fn run_misfits(before: bool) -> (String, Bench) {
    let mut bench = Bench::new(OrchestrationRegistry::builder().register("misfits", misfits).build());
    bench.send(start("misfits", ""));
    if before {
        let EventKind::OrchestrationStarted { rules, .. } = &mut bench.history[0].kind else { panic!("a start") };
        *rules = serde_json::from_str("1").unwrap();
        bench.cold();
    }
    for _ in 0..3 {
        let scheduled = bench.history.iter().rev().find(|e| matches!(e.kind, EventKind::ActivityScheduled { .. }));
        let result = bench.result(scheduled.unwrap().event_id.0, Ok("{}")).unwrap();
        bench.turn(vec![result]);
    }
    let scheduled = bench.history.iter().find_map(|e| match &e.kind {
        EventKind::SubOrchestrationScheduled { token, .. } => Some((e.event_id, *token)),
        _ => None,
    });
    let ((event, token), execution) = (scheduled.unwrap(), bench.state.execution);
    bench.send(MessageKind::ChildDone { execution, event, token, result: Ok("{}".to_owned()) });
    let report = bench.history.last().unwrap();
    assert!(matches!(&report.kind, EventKind::ActivityScheduled { name, .. } if name == "Report"), "{report:?}");
    let result = bench.result(report.event_id.0, Ok("")).unwrap();
    bench.turn(vec![result]);
    let OrchestrationStatus::Completed { output, .. } = bench.state.to_status() else {
        panic!("{:?}", bench.state.output)
    };
    (output, bench)
}

#[test]
fn the_error_of_a_value_that_does_not_fit_names_instance_direction_and_whose_it_is() {
    let (output, bench) = run_misfits(false);
    let json = "is not the expected JSON: missing field `x` at line 1 column 2";
    let expected = [
        format!("instance \"i\": the value of key \"key\" {json}"),
        format!("instance \"i\": the result of activity \"Charge\" {json}"),
        format!("instance \"i\": the result of activity \"Pay\" {json}"),
        format!("instance \"i\": the result of activity \"Retried\" {json}"),
        format!("instance \"i\": the result of orchestration \"Child\" {json}"),
        "instance \"i\": the input of activity \"Unwritten\" cannot be written as JSON: key must be a string"
            .to_owned(),
    ];
    assert_eq!(output.lines().collect::<Vec<_>>(), expected);
    assert_eq!(check_replay(&bench.handlers, &bench.exported()), Ok(()));
}

#[test]
fn an_execution_of_before_keeps_its_errors_of_typed_values() {
    let (output, bench) = run_misfits(true);
    let json = "result is not the expected JSON: missing field `x` at line 1 column 2";
    let unwritten = "the value cannot be written as JSON: key must be a string";
    assert_eq!(output.lines().collect::<Vec<_>>(), [json, json, json, json, json, unwritten]);
    assert_eq!(check_replay(&bench.handlers, &bench.exported()), Ok(()));
}

#[test]
fn what_ends_an_orchestration_for_its_input_or_an_event_says_whose_it_was() {
    let registry = OrchestrationRegistry::builder()
        .register_typed("Buy", |_: OrchestrationContext, order: Order| async move { Ok(order.x) })
        .register("Wait", |ctx: OrchestrationContext, _: String| async move {
            Ok(ctx.schedule_wait_typed::<Order>("word").await.x.to_string())
        })
        .register("Dequeue", |ctx: OrchestrationContext, _: String| async move {
            Ok(ctx.dequeue_event_typed::<Order>("words").await.x.to_string())
        })
        .register_typed("Unwritten", |_: OrchestrationContext, _: String| async move { Ok(unwritable()) })
        .build();
    let (name, queue, data) = ("word".to_owned(), "words".to_owned(), "{}".to_owned());
    let raise = MessageKind::Raise { name, data: data.clone() };
    for (orchestration, message, expected) in [
        ("Buy", None, "instance \"i\": the input of orchestration \"Buy\" is not the expected JSON: missing field `x`"),
        ("Wait", Some(raise), "instance \"i\": the data of event \"word\" is not the expected JSON: missing field `x`"),
        (
            "Dequeue",
            Some(MessageKind::Enqueue { queue, data }),
            "instance \"i\": the message of queue \"words\" is not the expected JSON: missing field `x`",
        ),
        ("Unwritten", None, "instance \"i\": the result of orchestration \"Unwritten\" cannot be written as JSON"),
    ] {
        let mut bench = Bench::new(registry.clone());
        bench.send(start(orchestration, "{}"));
        if let Some(message) = message {
            bench.send(message);
        }
        let OrchestrationStatus::Failed { details, .. } = bench.state.to_status() else {
            panic!("{orchestration}: {:?}", bench.state.output)
        };
        assert!(details.display_message().contains(expected), "{orchestration}: {}", details.display_message());
    }
}
