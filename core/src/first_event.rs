//! The first event of an execution: what it was started with, and by which rules and limits its code is answered.

use crate::{Carried, CodeLimits, EventKind, Limits, ParentLink, Rules, StartMessage};

pub(crate) fn started_event(start: &StartMessage, version: String, seed: u64, limits: &Limits) -> EventKind {
    let parent: Option<&ParentLink> = start.parent.as_ref();
    EventKind::OrchestrationStarted {
        name: start.name.clone(),
        version,
        input: start.input.clone(),
        parent_instance: parent.map(|parent| parent.instance.as_str().to_owned()),
        parent_id: parent.map(|parent| parent.event.0),
        parent_execution: parent.map(|parent| parent.execution.0),
        parent_token: parent.map(|parent| parent.token),
        seed,
        rules: Rules::LATEST,
        traceparent: start.traceparent.clone(),
        carried: Carried::default(),
        limits: Some(CodeLimits::of(limits)),
        forks: Vec::new(),
    }
}
