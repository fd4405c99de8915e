//! Whether an id that is started again was started with the same input.

use outlast_core::{EventId, EventKind, ExecutionId, INITIAL_EXECUTION_ID, InstanceId, MessageKind};
use outlast_storage::{InboxCursor, StartRequest};

use crate::Client;

/// Log target of the client, which programs see by default.
const LOG: &str = "outlast::orchestration";
/// How many executions to look back for the one that began the instance's present life. Only for a log line, so that an
/// instance with thousands of executions costs no more than eight reads.
const LOOKED_BACK: u64 = 8;

impl Client {
    /// Whether the existing instance was started with another input than this request's; if so, logs a warning. An input that
    /// cannot be found out any more, or not now, counts as the same: the start itself is done.
    pub(crate) async fn has_other_input(&self, request: &StartRequest) -> bool {
        let MessageKind::Start(start) = &request.message.kind else { return false };
        let other = self.began_with_other_input(&request.instance, &start.input).await;
        if other {
            tracing::warn!(
                target: LOG, instance = %request.instance, orchestration = %start.name,
                "the instance exists and was started with another input, which it keeps: choose another id for another input"
            );
        }
        other
    }

    async fn began_with_other_input(&self, instance: &InstanceId, input: &str) -> bool {
        // The first turn may commit between reading the history and reading the inbox: then neither shows the start, and the next
        // read of the history does.
        for _ in 0..2 {
            if let Some(of) = self.input_of_present_life(instance).await {
                return of != input;
            }
        }
        false
    }

    async fn input_of_present_life(&self, instance: &InstanceId) -> Option<String> {
        let execution = self.store.state(instance).await.ok()??.execution;
        let first = ExecutionId(INITIAL_EXECUTION_ID);
        let oldest = execution.0.saturating_sub(LOOKED_BACK).max(first.0);
        let recent = (oldest..=execution.0).rev().map(ExecutionId);
        // If all of these continued as new, the first execution began it, unless the instance was started anew in between.
        for number in recent.chain((oldest > first.0).then_some(first)) {
            match self.store.history(instance, number, Some(EventId(1))).await.ok()?.pop() {
                // A start came as a message; continuing as new did not, and the first execution of a fork is only a copy.
                Some(event) if event.message_id.is_some() || number == first => {
                    let EventKind::OrchestrationStarted { input, .. } = event.kind else { return None };
                    return Some(input);
                }
                Some(_) => {}
                None if number == execution => return self.waiting_input(instance).await,
                None => return None,
            }
        }
        None
    }

    /// The same for an instance whose first turn is still to come.
    async fn waiting_input(&self, instance: &InstanceId) -> Option<String> {
        let (inbox, _) = self.store.inbox(instance, InboxCursor::default()).await.ok()?;
        inbox.into_iter().rev().find_map(|incoming| match incoming.message.kind {
            MessageKind::Start(start) | MessageKind::Replace(start) => Some(start.input),
            _ => None,
        })
    }
}
