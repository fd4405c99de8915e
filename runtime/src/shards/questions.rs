//! Answering workers that ask whether an activity is wanted: from memory, which hydration compares with the store, after checking
//! that the store still has the instance.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use outlast_broker::{Question, ReportReply};
use outlast_core::{ActivityKey, ActivityRef, InstanceStatus, Verdict};
use tokio::sync::oneshot;

use crate::dispatch::outstanding::Place;
use crate::instances::mailbox::{Inbound, Mailboxes};
use crate::shards::owner::Owner;

/// How long an instance may take to answer; as long as the worker waits for the owner.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Answers a worker. An activity that is outstanding here is wanted; about any other the instance is asked.
pub(crate) fn answer(owner: &Arc<Owner>, questions: Vec<Question>, answer: oneshot::Sender<Vec<ReportReply>>) {
    let places = owner.dispatcher.outstanding.places(questions.iter().map(|question| &question.activity));
    let generation = owner.tenure.generation();
    let speaks = |place: Place| place.generation == generation && owner.tenure.speaks_for(place.shard, place.epoch);
    let known: Vec<bool> = places.iter().map(|place| place.is_some_and(speaks)).collect();
    for question in questions.iter().filter(|question| question.begun) {
        owner.dispatcher.outstanding.begun(&question.activity);
    }
    let (owner, surroundings) = (Arc::clone(owner), owner.surroundings.clone());
    surroundings.spawn(async move {
        let asked = questions.into_iter().zip(known).map(|(question, known)| one(&owner, question, known));
        // A worker that is gone needs no answer.
        let _gone = answer.send(join_all(asked).await);
    });
}

async fn one(owner: &Arc<Owner>, question: Question, known: bool) -> ReportReply {
    let Question { activity, .. } = question;
    let instance = activity.key.instance.clone();
    // Memory is not enough, even for an activity that has not begun: this node may not have heard that the instance was deleted.
    if known {
        match is_gone(owner, &activity.key).await {
            Some(false) => return ReportReply::Settled(Verdict::Applied),
            Some(true) => {}
            // What begins now might be of an instance that has ended, and its result would not be taken either.
            None => return ReportReply::TryAgain,
        }
        owner.warm.deliver(&instance, Inbound::Reread);
    }
    let (answer, answered) = oneshot::channel();
    let ActivityRef { key, token } = activity;
    owner.warm.deliver(&instance, Inbound::Ask { key, token, answer });
    tokio::time::timeout(ANSWER_MAX, answered)
        .await
        .map_or(ReportReply::TryAgain, |reply| reply.unwrap_or(ReportReply::TryAgain))
}

/// Whether the store has no such life of the instance, or it has ended; `None` when the store does not say. Whoever deleted it may
/// have died before it told anybody, and the answer to a commit may be on its way. A row that has not come as far as the activity
/// is of another life under the id, or of a later execution. Many looks are one trip.
async fn is_gone(owner: &Owner, key: &ActivityKey) -> Option<bool> {
    let Some(state) = owner.store.state(&key.instance).await.ok()? else { return Some(true) };
    let has_ended = state.status != InstanceStatus::Running;
    Some(has_ended || state.execution != key.execution || state.last_event_id < key.event)
}
