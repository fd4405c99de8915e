//! Finds out that the stream of work is not what it was: gone, new, set back, purged. Owners then hand out again what has
//! no outcome. A needless alarm costs a look into the store, as a second copy of what is queued is refused.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::stream::Info;
use futures::StreamExt as _;
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::hub::{ANSWER_TIMEOUT, Hub};
use crate::Error;

/// How often the stream is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(1_000);
/// Shortest time between two alarms.
const ALARM_EVERY: Duration = Duration::from_secs(5);
/// How often the stream's anchor is made sure of.
const ANCHOR_EVERY: Duration = Duration::from_secs(60);
/// When looking has failed for so long on a connection that stands, that is a trouble, and the connection is made anew:
/// the server may have dropped the subscription by which answers come.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Longest time between two connections that are made anew for that.
const RECONNECT_EVERY_MAX: Duration = Duration::from_secs(300);
/// How often a delayed alarm is looked for.
const TICK: Duration = Duration::from_millis(250);

/// The alarm, and whether the stream was looked at since the connection was made.
pub(crate) struct Losses {
    alarms: watch::Sender<u64>,
    /// Something may be lost, and nobody was told yet.
    due: AtomicBool,
    rung: Mutex<Option<Instant>>,
    look: Notify,
    /// Which connection the last look was made on.
    checked: watch::Sender<u64>,
    /// Rises when sequences of the stream begin anew.
    incarnation: AtomicU64,
}

impl Default for Losses {
    fn default() -> Self {
        Self {
            alarms: watch::Sender::new(0),
            due: AtomicBool::new(false),
            rung: Mutex::default(),
            look: Notify::new(),
            checked: watch::Sender::new(0),
            incarnation: AtomicU64::new(0),
        }
    }
}

impl Losses {
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.alarms.subscribe()
    }

    /// Which life of the stream this is. An answer about a message of an earlier one must not be sent: its sequence may
    /// be another message's now.
    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Acquire)
    }

    /// Have the stream looked at now.
    pub(crate) fn look_now(&self) {
        self.look.notify_one();
    }

    fn alarm(&self, why: &str) {
        tracing::warn!(target: super::LOG, "work may be lost: {why}");
        self.due.store(true, Ordering::Release);
    }

    fn ring_if_due(&self) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let early = rung.is_some_and(|rung| rung.elapsed() < ALARM_EVERY);
        if !early && self.due.swap(false, Ordering::AcqRel) {
            *rung = Some(Instant::now());
            self.alarms.send_modify(|alarms| *alarms += 1);
        }
    }
}

impl Hub {
    /// Waits until the connection stands and the stream was looked at on it.
    pub(crate) async fn checked(&self) {
        let mut link = self.link.clone();
        let mut checked = self.losses.checked.subscribe();
        loop {
            let now = *link.borrow_and_update();
            if now.up && *checked.borrow_and_update() == now.connects {
                return;
            }
            tokio::select! {
                changed = link.changed() => if changed.is_err() { return },
                _ = checked.changed() => {}
            }
        }
    }

    /// Whether `checked` would return at once.
    pub(crate) fn is_checked(&self) -> bool {
        let now = *self.link.borrow();
        now.up && *self.losses.checked.borrow() == now.connects
    }
}

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
pub(crate) async fn run(hub: Arc<Hub>, seen: Arc<tokio::sync::Mutex<Option<Seen>>>) {
    // Only one run at a time asks for it.
    let mut seen = seen.lock().await;
    let mut audits = hub.client.subscribe(hub.subjects.audit()).await.ok();
    let mut link = hub.link.clone();
    let mut tick = tokio::time::interval(TICK);
    let mut looked: Option<Instant> = None;
    let mut silence = Silence::default();
    loop {
        let now = tokio::select! {
            _ = tick.tick() => looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY),
            changed = link.changed() => changed.is_ok(),
            () = hub.losses.look.notified() => true,
            audit = next(&mut audits) => {
                // Looking is audited too, so only what concerns the work leads to another look.
                let concerns = audit.as_ref().is_some_and(|audit| note(&hub, &audit.payload));
                if audit.is_none() {
                    audits = None;
                }
                concerns
            }
        };
        if now && hub.is_up() {
            looked = Some(Instant::now());
            // An answer that was asked for on another connection never comes.
            let result = tokio::select! {
                result = look(&hub, &mut seen) => result,
                _ = link.changed() => Err(Error::Unavailable("the connection changed".to_owned())),
            };
            if let Err(error) = &result {
                tracing::debug!(target: super::LOG, %error, "the stream cannot be looked at");
                looked = None;
            }
            silence.note(&hub, result.err()).await;
        }
        hub.losses.ring_if_due();
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
    async fn note(&mut self, hub: &Hub, error: Option<Error>) {
        let Some(error) = error else {
            *self = Self::default();
            return;
        };
        let connects = hub.link.borrow().connects;
        if std::mem::replace(&mut self.connects, connects) != connects {
            self.since = None;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() < ANSWER_TIMEOUT {
            return;
        }
        hub.troubles.note(format!(
            "JetStream does not do what it is asked: {error}: look at nats-server, its log and its disk"
        ));
        let patience = SILENCE_MAX * 2_u32.saturating_pow(self.reconnects);
        if since.elapsed() < patience.min(RECONNECT_EVERY_MAX) {
            return;
        }
        self.reconnects = self.reconnects.saturating_add(1);
        if let Err(error) = hub.client.force_reconnect().await {
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

/// Somebody purged or deleted; `false` when it was none of the work. Who may not hear of it hears nothing here, and sees
/// less.
fn note(hub: &Hub, audit: &[u8]) -> bool {
    let Ok(audit) = serde_json::from_slice::<Audit>(audit) else { return false };
    let deleted = hub.subjects.deletes_consumer(&audit.subject);
    if let Some(lane) = &deleted {
        hub.forget_lane(lane);
    }
    if !hub.subjects.removes_work(&audit.subject) {
        return deleted.is_some() || hub.subjects.changes_streams(&audit.subject);
    }
    // Nodes take out single messages that nobody wants.
    if audit.client.name == hub.options.client_name() && hub.subjects.removes_one(&audit.subject) {
        return false;
    }
    let purge = serde_json::from_str::<PurgeRequest>(&audit.request).unwrap_or_default();
    // Whoever forgets a worker hands out its items again by itself.
    if !hub.subjects.is_of_worker(&purge.filter) && purge.filter != hub.subjects.anchor() {
        hub.losses.alarm("somebody removed messages from the stream");
    }
    true
}

async fn look(hub: &Hub, seen: &mut Option<Seen>) -> Result<(), Error> {
    let connects = hub.link.borrow().connects;
    let acknowledged = hub.acknowledged.load(Ordering::Acquire);
    let server = hub.client.server_info().server_id;
    let mut info = look_at_work(hub).await?;
    if hub.set_right(&hub.work_config(), &info).await? {
        hub.losses.alarm("somebody has edited the stream");
        info = look_at_work(hub).await?;
    }
    if hub.relieve(&info).await? {
        info = look_at_work(hub).await?;
    }
    if let Some(seen) = seen {
        compare(hub, seen, &info, acknowledged);
        if seen.connects != connects {
            hub.losses.alarm(if seen.server == server { "the connection was lost" } else { "this is another server" });
            hub.forget_lanes();
        }
    }
    let due = |seen: &Seen| seen.anchored.elapsed() >= ANCHOR_EVERY || hub.losses.due.load(Ordering::Acquire);
    let anchored = match seen.as_ref() {
        Some(seen) if !due(seen) => seen.anchored,
        Some(_) | None => {
            hub.anchor(&info).await?;
            Instant::now()
        }
    };
    *seen = Some(Seen { info, server, connects, anchored });
    hub.losses.checked.send_if_modified(|checked| std::mem::replace(checked, connects) != connects);
    Ok(())
}

async fn look_at_work(hub: &Hub) -> Result<Info, Error> {
    let config = hub.work_config();
    if let Some(info) = hub.look_at(&config).await? {
        return Ok(info);
    }
    hub.create_stream(&config).await?;
    hub.look_at(&config).await?.ok_or_else(|| Error::Unavailable("the stream goes away".to_owned()))
}

fn compare(hub: &Hub, seen: &Seen, info: &Info, acknowledged: u64) {
    let new = seen.info.created != info.created;
    let back = info.state.last_sequence < acknowledged.max(seen.info.state.last_sequence);
    if !new && !back {
        return;
    }
    hub.losses.alarm(if new { "the stream was made anew" } else { "the stream was set back" });
    hub.acknowledged.store(info.state.last_sequence, Ordering::Release);
    hub.losses.incarnation.fetch_add(1, Ordering::AcqRel);
    hub.forget_lanes();
}
