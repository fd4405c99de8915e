//! What a turn records and asks for.

use std::time::Duration;

use outlast_core::{Millis, OrchestrationContext, OrchestrationRegistry, RetryPolicy};

use crate::harness::{Bench, check, start};

#[test]
fn chain_schedules_the_second_activity_with_the_result_of_the_first() {
    check(
        "start chain in
         done 2 one
         done 4 two",
        "1.1 OrchestrationStarted chain in
         1.2 ActivityScheduled A in
         > dispatch 2 A
         1.3 <- 2 ActivityCompleted one
         1.4 ActivityScheduled B one
         > dispatch 4 B
         1.5 <- 4 ActivityCompleted two
         1.6 OrchestrationCompleted two
         = Completed",
    );
}

#[test]
fn a_result_that_comes_twice_is_recorded_once() {
    check(
        "start chain in
         done 2 one
         done 2 other",
        "1.1 OrchestrationStarted chain in
         1.2 ActivityScheduled A in
         > dispatch 2 A
         1.3 <- 2 ActivityCompleted one
         1.4 ActivityScheduled B one
         > dispatch 4 B
         = Running",
    );
}

#[test]
fn an_event_without_a_wait_is_dropped_and_one_with_a_wait_is_taken() {
    check(
        "start approval x
         raise other a
         raise approve yes",
        "1.1 OrchestrationStarted approval x
         1.2 TimerCreated
         1.3 ExternalSubscribed approve
         1.4 <- 3 ExternalEvent approve yes
         1.5 OrchestrationCompleted yes
         = Completed",
    );
}

#[test]
fn a_timer_fires_when_it_is_due_and_not_before() {
    check(
        "start approval x
         advance 59999
         advance 1
         raise approve late",
        "1.1 OrchestrationStarted approval x
         1.2 TimerCreated
         1.3 ExternalSubscribed approve
         1.4 <- 2 TimerFired
         1.5 <- 3 ExternalSubscribedCancelled
         1.6 OrchestrationFailed too late
         = Failed",
    );
}

#[test]
fn the_longest_delay_is_a_timer_of_the_year_9999() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let second = ctx.schedule_timer(Duration::from_millis(u64::MAX));
        let retried = RetryPolicy::new(3).with_timeout(Duration::MAX);
        let call = ctx.schedule_activity_with_retry("A", "", retried);
        let never = ctx.select3(ctx.schedule_timer(Duration::MAX), second, call).await;
        Ok(format!("{never:?}"))
    };
    let mut bench = Bench::new(OrchestrationRegistry::builder().register("job", code).build());
    bench.send(start("job", ""));
    for cold in [false, true] {
        if cold {
            bench.cold();
        }
        bench.now = bench.now.plus(Duration::from_secs(3_600 * 24 * 365 * 1_000));
        bench.turn(Vec::new());
        assert_eq!(bench.state.wake_at, Some(Millis::FAR));
        assert!(i64::try_from(Millis::FAR.0).is_ok(), "stores have signed numbers");
    }
    let result = bench.result(4, Ok("done")).unwrap();
    bench.turn(vec![result]);
    assert_eq!(bench.state.output.as_deref(), Some("Third(Ok(\"done\"))"));
}

#[test]
fn queue_messages_wait_for_a_dequeue_through_continue_as_new() {
    check(
        "start counter 1
         enqueue words a
         enqueue words b
         advance 1
         enqueue words stop
         advance 1",
        "1.1 OrchestrationStarted counter 1
         1.2 KeyValueSet count 1
         1.3 QueueSubscribed words
         1.4 <- 3 QueueEventDelivered words a
         1.5 OrchestrationContinuedAsNew 2
         2.1 OrchestrationStarted counter 2
         2.2 KeyValueSet count 2
         2.3 QueueSubscribed words
         2.4 <- 3 QueueEventDelivered words b
         2.5 OrchestrationContinuedAsNew 3
         3.1 OrchestrationStarted counter 3
         3.2 KeyValueSet count 3
         3.3 QueueSubscribed words
         3.4 <- 3 QueueEventDelivered words stop
         3.5 OrchestrationCompleted 3 Some(\"3\")
         = Completed",
    );
}

#[test]
fn a_child_is_started_with_the_turn_and_its_outcome_taken() {
    check(
        "start parent x
         child 2 fine",
        "1.1 OrchestrationStarted parent x
         1.2 SubOrchestrationScheduled child i::sub::2 x
         > send start child to i::sub::2
         1.3 <- 2 SubOrchestrationCompleted fine
         1.4 OrchestrationCompleted fine
         = Completed",
    );
}

#[test]
fn a_paused_instance_takes_nothing_until_it_is_resumed() {
    check(
        "start approval x
         pause
         raise approve yes
         resume",
        "1.1 OrchestrationStarted approval x
         1.2 TimerCreated
         1.3 ExternalSubscribed approve
         1.4 OrchestrationPaused
         1.5 OrchestrationResumed
         1.6 <- 3 ExternalEvent approve yes
         1.7 OrchestrationCompleted yes
         = Completed",
    );
}
