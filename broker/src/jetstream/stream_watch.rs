//! Finds out that the stream of work is not what it was: gone, new, set back, purged.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::stream::Info;
use futures::StreamExt as _;
use serde::Deserialize;
use tokio::time::Instant;

use super::server::{ANSWER_TIMEOUT, Server};
use crate::Error;

/// How often the stream is looked at: a lost stream is noticed within two looks, and one costs a small request.
const LOOK_EVERY: Duration = Duration::from_millis(1_000);
/// How often the stream's anchor is made sure of. Without it only speed is lost, and slowly.
const ANCHOR_EVERY: Duration = Duration::from_secs(60);
/// When looking has failed for so long on a connection that stands, that is a trouble, and the connection is made anew:
/// the server may have dropped the subscription by which answers come.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Longest time between two connections that are made anew for that: a server that never answers is not the connection's fault.
const RECONNECT_EVERY_MAX: Duration = Duration::from_secs(300);
/// How often a delayed alarm is looked for: small beside the seconds by which it is delayed.
const TICK: Duration = Duration::from_millis(250);

/// A call of the server's interface that changed something.
#[derive(Deserialize)]
struct Audit {
    subject: String,
    #[serde(default)]
    request: String,
    #[serde(default)]
    client: Caller,
}

/// Who called.
#[derive(Default, Deserialize)]
struct Caller {
    #[serde(default)]
    name: String,
}

/// The part of a purge that says how much.
#[derive(Default, Deserialize)]
struct PurgeRequest {
    #[serde(default)]
    filter: String,
}

/// What was seen at the last look.
pub(crate) struct Seen {
    info: Info,
    server: String,
    connects: u64,
    /// When the anchor was last made sure of.
    anchored: Instant,
}

/// Looks until it is aborted. What was `seen` outlives a panic: the next look is compared with it.
pub(crate) async fn run(server: Arc<Server>, seen: Arc<tokio::sync::Mutex<Option<Seen>>>) {
    // Only one run at a time asks for it.
    let mut seen = seen.lock().await;
    let mut audits = server.client.subscribe(server.subjects.audit()).await.ok();
    let mut link = server.link.clone();
    let mut tick = tokio::time::interval(TICK);
    let mut looked: Option<Instant> = None;
    let mut silence = Silence::default();
    loop {
        let now = tokio::select! {
            _ = tick.tick() => looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY),
            changed = link.changed() => changed.is_ok(),
            () = server.losses.look.notified() => true,
            audit = next(&mut audits) => {
                // Looking is audited too, so only what concerns the work leads to another look.
                let concerns = audit.as_ref().is_some_and(|audit| note(&server, &audit.payload));
                if audit.is_none() {
                    audits = None;
                }
                concerns
            }
        };
        if now && server.is_up() {
            looked = Some(Instant::now());
            // An answer that was asked for on another connection never comes.
            let result = tokio::select! {
                result = look(&server, &mut seen) => result,
                _ = link.changed() => Err(Error::unavailable("the connection changed")),
            };
            if let Err(error) = &result {
                tracing::debug!(target: super::LOG, %error, "the stream cannot be looked at");
                looked = None;
            }
            silence.note(&server, result.err()).await;
        }
        server.losses.ring_if_due();
    }
}

/// For how long looking has failed on one connection, and what was done about it.
#[derive(Default)]
struct Silence {
    since: Option<Instant>,
    connects: u64,
    reconnects: u32,
}

impl Silence {
    async fn note(&mut self, server: &Server, error: Option<Error>) {
        let Some(error) = error else {
            *self = Self::default();
            return;
        };
        let connects = server.link.borrow().connects;
        if std::mem::replace(&mut self.connects, connects) != connects {
            self.since = None;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() < ANSWER_TIMEOUT {
            return;
        }
        server.troubles.note(format!(
            "JetStream does not do what it is asked: {error}: look at nats-server, its log and its disk"
        ));
        let patience = SILENCE_MAX * 2_u32.saturating_pow(self.reconnects);
        if since.elapsed() < patience.min(RECONNECT_EVERY_MAX) {
            return;
        }
        self.reconnects = self.reconnects.saturating_add(1);
        if let Err(error) = server.client.force_reconnect().await {
            tracing::debug!(target: super::LOG, %error, "the connection is not made anew");
        }
    }
}

async fn next(audits: &mut Option<async_nats::Subscriber>) -> Option<async_nats::Message> {
    match audits {
        Some(audits) => audits.next().await,
        None => std::future::pending().await,
    }
}

/// Somebody purged or deleted; `false` when it does not concern the work. Without the right to hear of it, nothing arrives
/// here, and less is noticed.
fn note(server: &Server, audit: &[u8]) -> bool {
    let Ok(audit) = serde_json::from_slice::<Audit>(audit) else { return false };
    let deleted = server.subjects.deletes_consumer(&audit.subject);
    if let Some(queue) = &deleted {
        server.forget_queue(queue);
    }
    if !server.subjects.removes_work(&audit.subject) {
        return deleted.is_some() || server.subjects.changes_streams(&audit.subject);
    }
    // Nodes take out single messages that nobody wants.
    if audit.client.name == server.options.client_name() && server.subjects.removes_one(&audit.subject) {
        return false;
    }
    let purge = serde_json::from_str::<PurgeRequest>(&audit.request).unwrap_or_default();
    // Whoever forgets a worker hands out its items again by itself.
    if !server.subjects.is_of_worker(&purge.filter) && purge.filter != server.subjects.anchor() {
        server.losses.alarm("somebody removed messages from the stream");
    }
    true
}

async fn look(server: &Server, seen: &mut Option<Seen>) -> Result<(), Error> {
    let connects = server.link.borrow().connects;
    let acknowledged = server.acknowledged.load(Ordering::Acquire);
    let server_id = server.client.server_info().server_id;
    let mut info = look_at_work(server).await?;
    if server.set_right(&server.work_config(), &info).await? {
        server.losses.alarm("somebody has edited the stream");
        info = look_at_work(server).await?;
    }
    if server.relieve(&info).await? {
        info = look_at_work(server).await?;
    }
    if let Some(seen) = seen {
        compare(server, seen, &info, acknowledged);
        if seen.connects != connects {
            server.losses.alarm(if seen.server == server_id {
                "the connection was lost"
            } else {
                "this is another server"
            });
            server.forget_queues();
        }
    }
    let due = |seen: &Seen| seen.anchored.elapsed() >= ANCHOR_EVERY || server.losses.due.load(Ordering::Acquire);
    let anchored = match seen.as_ref() {
        Some(seen) if !due(seen) => seen.anchored,
        Some(_) | None => {
            server.anchor(&info).await?;
            Instant::now()
        }
    };
    *seen = Some(Seen { info, server: server_id, connects, anchored });
    server.losses.checked.send_if_modified(|checked| std::mem::replace(checked, connects) != connects);
    Ok(())
}

async fn look_at_work(server: &Server) -> Result<Info, Error> {
    let config = server.work_config();
    if let Some(info) = server.look_at(&config).await? {
        return Ok(info);
    }
    server.create_stream(&config).await?;
    server.look_at(&config).await?.ok_or_else(|| Error::unavailable("the stream goes away"))
}

fn compare(server: &Server, seen: &Seen, info: &Info, acknowledged: u64) {
    let new = seen.info.created != info.created;
    let back = info.state.last_sequence < acknowledged.max(seen.info.state.last_sequence);
    if !new && !back {
        return;
    }
    server.losses.alarm(if new { "the stream was made anew" } else { "the stream was set back" });
    server.acknowledged.store(info.state.last_sequence, Ordering::Release);
    server.losses.incarnation.fetch_add(1, Ordering::AcqRel);
    server.forget_queues();
}
