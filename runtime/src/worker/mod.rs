//! A worker: pulls activities that its filter takes, runs as many at once as it has slots, reports, then acks.

pub(crate) mod attempt;
pub(crate) mod deadlines;
pub(crate) mod execute;
pub(crate) mod sessions;
pub(crate) mod wanted;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outlast_broker::{Broker, Control, Delivery, Settle, WorkSource, WorkerProfile};
use outlast_client::Client;
use outlast_client::Surroundings;
use outlast_core::{ActivityRef, InstanceId, WorkerId};
use outlast_storage::Store;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::node::bounds::UnderWay;
use crate::problems::lasting::{Full, Since, Troubles};
use crate::shards::neighbours::Neighbours;
use crate::telemetry::counters::Counters;
use crate::worker::attempt::Admission;
use crate::worker::sessions::Sessions;
use crate::worker::wanted::Inquiries;
use crate::{ActivityRegistry, RuntimeOptions};

/// How long a stopping worker waits for the results of ended activities to be settled: part of the time that leaving may take.
const LAST_REPORTS_MAX: Duration = Duration::from_millis(1_500);
/// How often a worker without room for sessions checks whether an idle one can give way: what it waits for shows in no event.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(100);
/// How often a full worker asks whether anything waits for it: only for the report of problems, which looks every two seconds.
const LOOK_FOR_WAITING_EVERY: Duration = Duration::from_secs(1);
/// Pause before an item is looked at again whose session this worker holds for the store and has no room for: room comes when a
/// session gives way, and until then the item would come straight back.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(200);
/// Most items that are pulled at once: more make pulling no cheaper, and would be missing elsewhere while they begin here.
const PULL_MAX: usize = 256;

/// Settles one delivery as decided.
pub(crate) type SettleItem = Box<dyn FnOnce(Settle) + Send + Sync>;

/// An attempt that occupies a slot.
pub(crate) struct Running {
    activity: String,
    pub(crate) cancelled: CancellationToken,
    /// When its code was called.
    pub(crate) begun: Option<Instant>,
    /// Since when it is known to be unwanted.
    unwanted: Option<Instant>,
}

/// Code that was told to stop and still runs.
pub(crate) struct Unwanted {
    /// The activity that was told to stop longest ago.
    pub(crate) activity: String,
    pub(crate) instance: InstanceId,
    pub(crate) age: Duration,
    /// How many slots such code takes.
    pub(crate) count: usize,
}

/// A slot of a worker, from the delivery of an item until its code has really ended; the result may be known before.
pub(crate) struct Slot {
    worker: Arc<Worker>,
    activity: ActivityRef,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.worker.lock_running().remove(&self.activity);
    }
}

/// What all attempts of a worker share.
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) activities: ActivityRegistry,
    pub(crate) options: Arc<RuntimeOptions>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) shards: u16,
    pub(crate) client: Client,
    pub(crate) counters: Arc<Counters>,
    /// Who holds which shard.
    pub(crate) neighbours: Arc<Neighbours>,
    pub(crate) inquiries: Inquiries,
    pub(crate) running: Mutex<BTreeMap<ActivityRef, Running>>,
    /// Items with an attempt under way, each with the further copies delivered meanwhile.
    pub(crate) held: Mutex<BTreeMap<ActivityRef, Vec<SettleItem>>>,
    /// Attempts whose code has ended and whose result is not settled.
    pub(crate) reporting: UnderWay,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) slots: Arc<Semaphore>,
    /// One permit per unsettled result; with none left, pulling stops.
    pub(crate) reports: Arc<Semaphore>,
    pub(crate) attempts: TaskTracker,
    /// Lasting troubles of this worker; its node reports them.
    pub(crate) troubles: Arc<Troubles>,
    /// Take no new work.
    pub(crate) draining: CancellationToken,
    /// Give up reporting, because the process ends.
    pub(crate) stopped: CancellationToken,
    pub(crate) surroundings: Surroundings,
}

impl Worker {
    /// Works until told to stop, then leaves.
    pub(crate) async fn run(self: Arc<Self>) {
        let profile = WorkerProfile {
            id: self.id.clone(),
            filter: self.options.worker_tag_filter.clone(),
            sessions_max: self.options.max_sessions_per_runtime,
        };
        let (source, control) = loop {
            match self.broker.pull(profile.clone()).await {
                Ok(opened) => break opened,
                Err(_) if self.draining.is_cancelled() => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        };
        let mut source = source;
        let work = async {
            self.pull(source.as_mut()).await;
            self.leave(source.as_mut()).await;
        };
        // If it no longer hears cancellations, `run` ends and is restarted, just as if it no longer pulled.
        let hear = async {
            Arc::clone(&self).listen(control).await;
            if self.draining.is_cancelled() {
                std::future::pending::<()>().await;
            }
        };
        let ask = async {
            Arc::clone(&self).ask_about_running().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = work => {}
            () = hear => {}
            () = ask => unreachable!("what runs is asked about for ever"),
            () = self.sessions.keep() => unreachable!("sessions are kept for ever"),
        }
    }

    /// Hands back items that were not begun, waits for running attempts, and returns when the broker knows all that was settled.
    async fn leave(&self, source: &mut dyn WorkSource) {
        self.sessions.leave().await;
        source.close().await;
        loop {
            self.sessions.take_ended().iter().for_each(|session| source.release_session(session));
            tokio::select! {
                biased;
                () = self.stopped.cancelled() => break,
                () = self.sessions.changed() => {}
                () = self.attempts.wait() => break,
            }
        }
        let reported = async {
            while !self.reporting.is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // What is not reported by then runs again elsewhere.
        let _late = tokio::time::timeout(LAST_REPORTS_MAX, reported).await;
        source.finish().await;
    }

    /// Pulls until told to stop.
    async fn pull(self: &Arc<Self>, source: &mut dyn WorkSource) {
        loop {
            self.sessions.take_ended().iter().for_each(|session| source.release_session(session));
            let has_room = self.sessions.has_room(&|session| source.waits_for(session));
            source.admit_sessions(has_room);
            if has_room {
                self.troubles.sessions.end(&());
            } else if self.slots.available_permits() > 0 {
                // A slot is free, so whatever waits is waiting for room for its session.
                note_full(&self.troubles.sessions, source).await;
            }
            let next = async {
                let mut slots = self.free_slot(source).await?;
                let mut reports = Arc::clone(&self.reports).acquire_owned().await.ok()?;
                // Many at once: one after the other costs more than all else that a worker does for a quick activity.
                let more = self.slots.available_permits().min(self.reports.available_permits()).min(PULL_MAX - 1);
                if let Some((more_slots, more_reports)) = self.take_permits(more) {
                    slots.merge(more_slots);
                    reports.merge(more_reports);
                }
                source.next(slots.num_permits()).await.map(|deliveries| (deliveries, slots, reports))
            };
            // `next` may be dropped here: the source keeps what it has fetched, and the permits become free again.
            let (deliveries, mut slots, mut reports) = tokio::select! {
                biased;
                () = self.draining.cancelled() => return,
                next = next => match next {
                    Some(next) => next,
                    None => return,
                },
                () = self.sessions.changed() => continue,
                // Items that kept an idle session from giving way may have gone elsewhere.
                () = tokio::time::sleep(LOOK_FOR_ROOM), if !has_room => continue,
            };
            // Permits without a delivery are dropped, which frees them.
            for delivery in deliveries {
                let (Some(slot), Some(report)) = (slots.split(1), reports.split(1)) else { break };
                self.begin(source, delivery, slot, report);
            }
        }
    }

    fn take_permits(&self, count: usize) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let count = u32::try_from(count).ok()?;
        let slots = Arc::clone(&self.slots).try_acquire_many_owned(count).ok()?;
        let reports = Arc::clone(&self.reports).try_acquire_many_owned(count).ok()?;
        Some((slots, reports))
    }

    /// Waits for a free slot; while that takes long, asks the source whether anything waits for one.
    async fn free_slot(&self, source: &mut dyn WorkSource) -> Option<OwnedSemaphorePermit> {
        let mut slot = Arc::clone(&self.slots).try_acquire_owned().ok();
        while slot.is_none() {
            let look = async {
                note_full(&self.troubles.slots, &mut *source).await;
                tokio::time::sleep(LOOK_FOR_WAITING_EVERY).await;
            };
            // A slot that comes free must not wait for the answer, which may take long.
            tokio::select! {
                biased;
                free = Arc::clone(&self.slots).acquire_owned() => slot = Some(free.ok()?),
                () = look => {}
            }
        }
        self.troubles.slots.end(&());
        slot
    }

    fn begin(
        self: &Arc<Self>,
        source: &mut dyn WorkSource,
        delivery: Delivery,
        permit: OwnedSemaphorePermit,
        report: OwnedSemaphorePermit,
    ) {
        let activity = delivery.item.activity();
        if let Some(copies) = self.lock_held().get_mut(&activity) {
            // A second copy: handed out before the session had a holder, or after the broker took the first for lost.
            return copies.push(delivery.settle);
        }
        let mut session_use = None;
        if let Some(session) = &delivery.item.session_id {
            let entered = self.sessions.enter(session, &|session| source.waits_for(session));
            let Some(entered) = entered else {
                // Where the store takes this worker for the holder, others would only bring the item back.
                let stays = self.sessions.may_hold(session);
                return (delivery.settle)(if stays { Settle::Later(NO_ROOM_PAUSE) } else { Settle::Unclaimed });
            };
            source.hold_session(session);
            session_use = Some(Arc::new(entered));
        }
        // Only the pulling task inserts, so no other copy can have begun since the look above.
        self.lock_held().insert(activity.clone(), Vec::new());
        let cancelled = CancellationToken::new();
        let (name, begun, unwanted) = (delivery.item.name.clone(), None, None);
        let running = Running { activity: name, cancelled: cancelled.clone(), begun, unwanted };
        self.lock_running().insert(activity.clone(), running);
        let worker = Arc::clone(self);
        let slot = Slot { worker: Arc::clone(self), activity, _permit: permit };
        let admission = Admission { slot, report, session: session_use };
        // Boxed, as spawning moves it several times.
        let attempt = Box::pin(crate::worker::attempt::run(worker, delivery, cancelled, admission));
        self.surroundings.spawn(self.attempts.track_future(attempt));
    }

    /// Passes cancellations on to the attempts that they are for.
    async fn listen(self: Arc<Self>, mut control: mpsc::UnboundedReceiver<Control>) {
        while let Some(control) = control.recv().await {
            match control {
                Control::Cancel(activity) => drop(self.cancel(&activity)),
                Control::Check(key) => {
                    let running = self.lock_running().keys().filter(|activity| activity.key == key).cloned().collect();
                    // Answers take their time, and other cancellations must not wait for them.
                    let worker = Arc::clone(&self);
                    self.surroundings.spawn(async move { worker.check(running).await });
                }
            }
        }
    }

    /// Code that still runs at least this long after it was told to stop; `None` if there is none.
    pub(crate) fn unwanted_for(&self, least: Duration) -> Option<Unwanted> {
        let running = self.lock_running();
        let ages =
            running.iter().filter_map(|(activity, running)| Some((running.unwanted?.elapsed(), activity, running)));
        let unwanted: Vec<_> = ages.filter(|(age, _, _)| *age >= least).collect();
        let (age, activity, longest) = unwanted.iter().max_by_key(|(age, _, _)| *age)?;
        let (instance, activity) = (activity.key.instance.clone(), longest.activity.clone());
        Some(Unwanted { activity, instance, age: *age, count: unwanted.len() })
    }

    /// The instance whose activity has run for longest.
    pub(crate) fn longest_running(&self) -> Option<InstanceId> {
        let running = self.lock_running();
        let begun = running.iter().filter_map(|(activity, running)| Some((running.begun?, activity)));
        begun.min_by_key(|(begun, _)| *begun).map(|(_, activity)| activity.key.instance.clone())
    }

    /// How many activities are running user code, including those whose outcome is already known.
    pub(crate) fn code_running(&self) -> usize {
        self.lock_running().values().filter(|running| running.begun.is_some()).count()
    }

    /// Waits until no user code runs any more; after `limit`, logs what still does.
    pub(crate) async fn code_ended(&self, limit: Duration) {
        let ended = async {
            while self.code_running() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(limit, ended).await.is_ok() {
            return;
        }
        for (running_as, running) in self.lock_running().iter().filter(|(_, running)| running.begun.is_some()) {
            let (activity, instance) = (&running.activity, &running_as.key.instance);
            tracing::warn!(target: crate::telemetry::logging::RUNTIME, %activity, %instance, "an activity blocks its thread and has not ended at shutdown");
        }
    }

    /// Tells an attempt that it is not wanted; `false` if it was told before, or is not here.
    pub(crate) fn cancel(&self, activity: &ActivityRef) -> bool {
        let mut running = self.lock_running();
        let Some(running) = running.get_mut(activity).filter(|running| running.unwanted.is_none()) else {
            return false;
        };
        running.unwanted = Some(Instant::now());
        running.cancelled.cancel();
        true
    }

    /// Activities that have run this long and may be wanted.
    pub(crate) fn running_for(&self, least: Duration) -> Vec<ActivityRef> {
        let running = self.lock_running();
        let is_long = |running: &Running| {
            running.unwanted.is_none() && running.begun.is_some_and(|begun| begun.elapsed() >= least)
        };
        running.iter().filter(|(_, running)| is_long(running)).map(|(activity, _)| activity.clone()).collect()
    }

    pub(crate) fn lock_running(&self) -> std::sync::MutexGuard<'_, BTreeMap<ActivityRef, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lock_held(&self) -> std::sync::MutexGuard<'_, BTreeMap<ActivityRef, Vec<SettleItem>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes that a worker is full, and asks from time to time whether anything waits for it.
async fn note_full(full: &Since<(), Full>, source: &mut dyn WorkSource) {
    match full.get(&()) {
        Some(known) if known.asked.elapsed() < LOOK_FOR_WAITING_EVERY => {}
        Some(_) => {
            let waits = source.has_waiting().await;
            full.note((), Full { waits, asked: Instant::now() });
        }
        None => {
            full.note((), Full { waits: false, asked: Instant::now() });
        }
    }
}
