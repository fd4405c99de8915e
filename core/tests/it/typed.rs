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
