//! How instances end.

use outlast_core::{MessageKind, OrchestrationContext, OrchestrationRegistry, StartMessage, encode};

use crate::harness::{Bench, check};

#[test]
fn what_is_not_awaited_is_recorded_and_not_run_but_detached_starts_are() {
    check(
        "start forgetful x",
        "1.1 OrchestrationStarted forgetful x
         1.2 ActivityScheduled A x
         1.3 OrchestrationChained other detached y
         1.4 <- 2 ActivityCancelRequested dropped by the orchestration
         1.5 OrchestrationCompleted done
         > send start other to detached
         = Completed",
    );
}

#[test]
fn a_child_that_is_dropped_in_its_scheduling_turn_exists_and_is_cancelled() {
    check(
        "start dropping x
         advance 1000",
        "1.1 OrchestrationStarted dropping x
         1.2 SubOrchestrationScheduled child i::sub::2 x
         1.3 <- 2 SubOrchestrationCancelRequested dropped by the orchestration
         1.4 TimerCreated
         > send start child to i::sub::2
         > send cancel to i::sub::2
         1.5 <- 4 TimerFired
         1.6 OrchestrationCompleted done
         = Completed",
    );
}

#[test]
fn what_else_is_dropped_in_its_scheduling_turn_is_recorded_and_does_nothing() {
    check(
        "start fickle x
         raise go first
         enqueue words kept
         raise go second
         advance 1000",
        "1.1 OrchestrationStarted fickle x
         1.2 ActivityScheduled A x
         1.3 <- 2 ActivityCancelRequested dropped by the orchestration
         1.4 TimerCreated
         1.5 ExternalSubscribed go
         1.6 <- 5 ExternalSubscribedCancelled
         1.7 QueueSubscribed words
         1.8 <- 7 QueueSubscriptionCancelled
         1.9 ExternalSubscribed go
         1.10 <- 9 ExternalEvent go first
         1.11 OrchestrationCompleted first
         = Completed",
    );
}

#[test]
fn a_child_that_is_dropped_in_the_last_turn_is_recorded_and_not_run() {
    check(
        "start careless x",
        "1.1 OrchestrationStarted careless x
         1.2 SubOrchestrationScheduled child i::sub::2 x
         1.3 <- 2 SubOrchestrationCancelRequested dropped by the orchestration
         1.4 OrchestrationCompleted done
         = Completed",
    );
}

#[test]
fn a_cancel_ends_activities_and_says_why() {
    check(
        "start chain in
         cancel no longer needed
         done 2 late",
        "1.1 OrchestrationStarted chain in
         1.2 ActivityScheduled A in
         > dispatch 2 A
         1.3 OrchestrationCancelRequested no longer needed
         1.4 <- 2 ActivityCancelRequested no longer needed
         1.5 OrchestrationFailed canceled: no longer needed
         > cancel 2
         = Failed",
    );
}

#[test]
fn a_cancel_reaches_the_children() {
    check(
        "start parent x
         cancel stop",
        "1.1 OrchestrationStarted parent x
         1.2 SubOrchestrationScheduled child i::sub::2 x
         > send start child to i::sub::2
         1.3 OrchestrationCancelRequested stop
         1.4 <- 2 SubOrchestrationCancelRequested stop
         1.5 OrchestrationFailed canceled: stop
         > send cancel to i::sub::2
         = Failed",
    );
}

#[test]
fn a_value_of_another_instance_is_read_outside_and_recorded_as_an_activity() {
    check(
        "start curious other
         done 2 \"red\"",
        "1.1 OrchestrationStarted curious other
         1.2 ActivityScheduled outlast::read_kv [\"other\",\"colour\"]
         > read colour of other
         1.3 <- 2 ActivityCompleted \"red\"
         1.4 OrchestrationCompleted Some(\"red\")
         = Completed",
    );
}

/// With as many open as there may be, whole copies of the largest reason would be gigabytes in one commit.
#[test]
fn a_long_reason_is_told_to_all_that_is_open_in_short() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let activities = (0..1_000).map(|_| ctx.schedule_activity("A", "x")).collect();
        let children = (0..1_000).map(|_| ctx.schedule_sub_orchestration("Child", "x")).collect();
        ctx.join2(ctx.join(activities), ctx.join(children)).await;
        Ok(String::new())
    };
    let mut bench = Bench::new(OrchestrationRegistry::builder().register("Fan", code).build());
    let (name, input) = ("Fan".to_owned(), String::new());
    bench.send(MessageKind::Start(StartMessage { name, version: None, input, parent: None, traceparent: None }));
    let reason = "r".repeat(8 << 20);
    let turn = bench.send(MessageKind::Cancel { child: None, reason: reason.clone() });
    let sizes = turn.events.iter().map(|(_, event)| encode(&event.kind).len());
    let written = sizes.sum::<usize>() + turn.outbound.iter().map(|sent| encode(&sent.message).len()).sum::<usize>();
    assert!(turn.events.len() > 2_000 && turn.outbound.len() == 1_000, "all are told");
    assert!(written < 3 * reason.len(), "{written} bytes are written");
}

#[test]
fn a_panic_fails_the_instance_with_its_text() {
    check(
        "start panics x
         advance 1000",
        "1.1 OrchestrationStarted panics x
         1.2 TimerCreated
         1.3 <- 2 TimerFired
         1.4 OrchestrationFailed orchestration panicked: boom
         = Failed",
    );
}

#[test]
fn waiting_for_nothing_durable_is_an_error_and_does_not_hang() {
    check(
        "start sleeps x",
        "1.1 OrchestrationStarted sleeps x
         1.2 OrchestrationFailed nondeterministic: the code waits, but for nothing durable: use ctx.schedule_timer instead of sleep, an activity instead of I/O
         = Failed",
    );
}

#[test]
fn poison_of_an_activity_ends_the_parent_without_its_code_seeing_it() {
    check(
        "start chain in
         poison 2 nobody",
        "1.1 OrchestrationStarted chain in
         1.2 ActivityScheduled A in
         > dispatch 2 A
         1.3 <- 2 ActivityFailed poison: activity gave up after 3 of 3 attempts: nobody
         1.4 OrchestrationFailed poison: activity gave up after 3 of 3 attempts: nobody
         = Failed",
    );
}
