//! What a shard's owner listens to: mail from the broker, the clock, and writes by other processes.

use std::sync::Arc;
use std::time::Duration;

use outlast_broker::{Report, ReportReply, ReportResult, ShardMessage};
use outlast_core::{ActivityRef, InstanceId, Message, MessageKind, Millis, ShardId, Verdict};
use outlast_storage::InboxCursor;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::dispatch::result_id;
use crate::instances::mailbox::Inbound;
use crate::node::Node;
use crate::node::supervision::NodeTask;
use crate::telemetry::logging::RUNTIME;

/// What is due within this time is kept in memory.
const HORIZON: Duration = Duration::from_secs(60);
/// How often what comes within the horizon is read.
const HORIZON_STEP: Duration = Duration::from_secs(30);
/// Rows that one look at the store takes.
const PAGE: usize = 10_000;
/// Longest time between looks for writes by other processes.
const ELSEWHERE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a look at the inboxes that failed.
const SWEEP_AGAIN: Duration = Duration::from_millis(200);
/// How often idle instances are let go.
const PASSIVATE_EVERY: Duration = Duration::from_secs(1);

/// Reads mail until the node stops. The lock is held all the while: only the successor of this task asks for it again.
pub(crate) async fn read_mail(node: Arc<Node>, mail: Arc<Mutex<mpsc::UnboundedReceiver<ShardMessage>>>) {
    let mut mail = mail.lock().await;
    loop {
        let received = tokio::select! {
            received = mail.recv() => received,
            () = node.stopping.cancelled() => None,
        };
        match received {
            Some(ShardMessage::Nudge(instance)) => node.bring(&instance, Inbound::Nudge),
            Some(ShardMessage::Begin(beginning)) => node.bring(&beginning.instance.clone(), Inbound::Begin(beginning)),
            Some(ShardMessage::Deleted(instance)) => node.deliver(&instance, Inbound::Reread),
            Some(ShardMessage::Ask(questions, answer)) => crate::worker::wanted::answer(&node, questions, answer),
            Some(ShardMessage::Report(report, answer)) => take_report(&node, *report, answer),
            None => return,
        }
    }
}

fn take_report(node: &Arc<Node>, report: Report, answer: oneshot::Sender<ReportReply>) {
    let activity = ActivityRef { key: report.key, token: report.token };
    match report.result {
        ReportResult::Done { outcome, run } => {
            node.registered(&activity);
            let ActivityRef { key, token } = activity;
            let id = result_id(&key, token);
            let kind = MessageKind::ActivityDone {
                execution: key.execution,
                event: key.event,
                token,
                outcome,
                run: Some(run),
            };
            node.deliver_direct(&key.instance, Message { id, kind }, answer);
        }
        ReportResult::Unregistered { activity: name } => {
            let _gone = answer.send(ReportReply::Settled(Verdict::Applied));
            node.retry_unregistered(activity, name);
        }
    }
}

/// Wakes instances when they are due, by the store's clock.
pub(crate) async fn keep_time(node: Arc<Node>) {
    let mut next_look = Millis(0);
    loop {
        let now = node.store.now();
        if now >= next_look {
            next_look = look_ahead(&node, now).await;
        }
        for instance in node.due_queue.take_due(node.store.now()) {
            node.deliver(&instance, Inbound::Wake);
        }
        let until = node.due_queue.next().map_or(next_look, |at| at.min(next_look));
        tokio::select! {
            () = node.store.sleep_until(until) => {}
            () = node.due_queue.sooner() => {}
            () = node.stopping.cancelled() => return,
        }
    }
}

/// Reads what comes within the horizon; returns when to look again.
async fn look_ahead(node: &Arc<Node>, now: Millis) -> Millis {
    let horizon = now.plus(HORIZON);
    node.due_queue.extend_to(horizon);
    match load_due(node, &node.held(), horizon).await {
        Ok(()) => now.plus(HORIZON_STEP),
        Err(error) => {
            tracing::warn!(target: RUNTIME, %error, "due instances could not be read, trying again");
            now.plus(Duration::from_secs(1))
        }
    }
}

async fn load_due(node: &Arc<Node>, shards: &[ShardId], horizon: Millis) -> Result<(), outlast_storage::Error> {
    if shards.is_empty() {
        return Ok(());
    }
    // A million rows due in one minute is beyond what one node fires; what is cut off is read by the next look.
    for due in node.store.due(shards, horizon, PAGE * 100).await? {
        node.due_queue.set_if_sooner(&due.instance, due.at);
    }
    Ok(())
}

/// Takes over shards: everything that may have been waiting for an owner is looked at once.
pub(crate) fn take_over(node: &Arc<Node>, shards: Vec<ShardId>) {
    let (kept, shards) = (Arc::clone(node), Arc::new(shards));
    let done = node.stopping.child_token();
    let asked = done.clone();
    tokio::spawn(Arc::clone(&node.supervisor).keep(NodeTask::TakeOver, asked, move || {
        let (node, shards, done) = (Arc::clone(&kept), Arc::clone(&shards), done.clone());
        async move {
            while let Err(error) = try_take_over(&node, &shards).await {
                tracing::warn!(target: RUNTIME, %error, "taking over failed, trying again");
                tokio::time::sleep(Duration::from_millis(200)).await;
                if done.is_cancelled() {
                    return;
                }
            }
            done.cancel();
        }
    }));
}

async fn try_take_over(node: &Arc<Node>, shards: &[ShardId]) -> Result<(), outlast_storage::Error> {
    load_due(node, shards, node.store.now().plus(HORIZON)).await?;
    sweep(node, shards, InboxCursor::default()).await?;
    let mut after: Option<InstanceId> = None;
    loop {
        let page = node.store.pending(shards, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.instance.clone());
        for wake in page {
            admit(node, &wake.instance, Inbound::Wake).await;
        }
    }
}

/// Nudges all receivers of inbox rows after `after`; returns from where to look on.
async fn sweep(
    node: &Arc<Node>,
    shards: &[ShardId],
    mut after: InboxCursor,
) -> Result<InboxCursor, outlast_storage::Error> {
    if shards.is_empty() {
        return Ok(after);
    }
    loop {
        let page = node.store.arrivals(shards, after, PAGE).await?;
        after = page.next;
        for wake in page.receivers {
            admit(node, &wake.instance, Inbound::Nudge).await;
        }
        if !page.more {
            return Ok(after);
        }
    }
}

/// Delivers, and waits itself when too many wait for room.
async fn admit(node: &Arc<Node>, instance: &InstanceId, inbound: Inbound) {
    while node.waiting_count() > node.limits.warm_instances_max && !node.stopping.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    node.deliver(instance, inbound);
}

/// Looks for messages that other processes wrote and for those that were left in the store here, and lets idle instances go.
pub(crate) async fn watch_store(node: Arc<Node>) {
    let (mut seen, mut written, mut generation) = (InboxCursor::default(), 0, node.generation());
    let mut passivated = tokio::time::Instant::now();
    loop {
        let (now, skipped) = tokio::select! {
            now = node.store.written_elsewhere(written, ELSEWHERE_TIMEOUT) => (now, false),
            () = node.skipped.some() => (written, true),
            () = node.stopping.cancelled() => return,
        };
        if node.generation() != generation {
            // A cursor into a past that is gone would pass over what is written from now on.
            (seen, generation) = (InboxCursor::default(), node.generation());
        }
        if now != written || skipped {
            let count = node.skipped.count();
            match sweep(&node, &node.held(), seen).await {
                Ok(last) => {
                    (seen, written) = (last, now);
                    node.skipped.swept(count);
                }
                Err(error) => {
                    tracing::warn!(target: RUNTIME, %error, "inboxes could not be read, trying again");
                    tokio::time::sleep(SWEEP_AGAIN).await;
                    node.skipped.again();
                }
            }
        }
        if passivated.elapsed() >= PASSIVATE_EVERY {
            node.passivate_idle();
            passivated = tokio::time::Instant::now();
        }
    }
}
