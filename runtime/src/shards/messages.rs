//! Receiving what comes for a node's shards: nudges, starts, deletions, workers' questions and their reports.

use std::sync::Arc;

use outlast_broker::{Report, ReportReply, ReportResult, ShardMessage, ShardNotice};
use outlast_core::{ActivityRef, Message, MessageKind, Verdict};
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::dispatch::result_id;
use crate::instances::mailbox::{Inbound, Mailboxes};
use crate::shards::owner::Owner;

/// Receives shard messages until the node stops. Holds the lock throughout: only a restart of this task locks it again.
pub(crate) async fn receive(owner: Arc<Owner>, messages: Arc<Mutex<mpsc::UnboundedReceiver<ShardMessage>>>) {
    let mut messages = messages.lock().await;
    loop {
        let received = tokio::select! {
            biased;
            () = owner.stopping.cancelled() => None,
            received = messages.recv() => received,
        };
        match received {
            Some(ShardMessage::Notice(notice)) => take_notice(&owner, notice),
            Some(ShardMessage::Ask(questions, answer)) => crate::shards::questions::answer(&owner, questions, answer),
            Some(ShardMessage::Report(report, answer)) => take_report(&owner, *report, answer),
            None => return,
        }
    }
}

fn take_notice(owner: &Owner, notice: ShardNotice) {
    match notice {
        ShardNotice::Nudge(instance) => owner.warm.bring(&instance, Inbound::Nudge),
        ShardNotice::Started(snapshot) => owner.warm.bring(&snapshot.instance.clone(), Inbound::Start(snapshot)),
        ShardNotice::Deleted(instance) => owner.warm.deliver(&instance, Inbound::Reread),
    }
}

fn take_report(owner: &Arc<Owner>, report: Report, answer: oneshot::Sender<ReportReply>) {
    let activity = ActivityRef { key: report.key, token: report.token };
    match report.result {
        ReportResult::Done { outcome, run } => {
            owner.dispatcher.registered(&activity);
            let ActivityRef { key, token } = activity;
            let id = result_id(&key, token);
            let kind = MessageKind::ActivityDone {
                execution: key.execution,
                event: key.event,
                token,
                outcome,
                run: Some(run),
            };
            owner.warm.deliver(&key.instance, Inbound::Direct(Message { id, kind }, answer));
        }
        ReportResult::Unregistered { activity: name } => {
            let _gone = answer.send(ReportReply::Settled(Verdict::Applied));
            owner.dispatcher.retry_unregistered(activity, name);
        }
    }
}
