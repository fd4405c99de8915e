//! The winner of a select.

use crate::harness::check;

#[test]
fn the_earlier_completion_wins_even_when_it_is_the_later_argument() {
    check(
        "start racing x
         done 3 b
         done 2 a
         raise go now",
        "1.1 OrchestrationStarted racing x
         1.2 ActivityScheduled A
         1.3 ActivityScheduled B
         1.4 ExternalSubscribed go
         > dispatch 2 A
         > dispatch 3 B
         1.5 <- 3 ActivityCompleted b
         1.6 <- 2 ActivityCompleted a
         1.7 <- 4 ExternalEvent go now
         1.8 OrchestrationCompleted second b
         = Completed",
    );
}

#[test]
fn the_loser_is_cancelled() {
    check(
        "start racing x
         done 3 b
         raise go now",
        "1.1 OrchestrationStarted racing x
         1.2 ActivityScheduled A
         1.3 ActivityScheduled B
         1.4 ExternalSubscribed go
         > dispatch 2 A
         > dispatch 3 B
         1.5 <- 3 ActivityCompleted b
         1.6 <- 4 ExternalEvent go now
         1.7 <- 2 ActivityCancelRequested dropped by the orchestration
         1.8 OrchestrationCompleted second b
         > cancel 2
         = Completed",
    );
}
