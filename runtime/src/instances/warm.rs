//! The warm instances of a node: at most `WarmOptions::max`; the others wait for room.
//!
//! Memory is a cache: an idle actor may be stopped at any time, and its instance is hydrated again for its next input. A busy
//! actor stays, so when all are busy, newcomers wait with their input until one becomes idle.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use lru::LruCache;
use outlast_broker::ReportReply;
use outlast_core::InstanceId;
use ractor::{ActorRef, SpawnErr};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::instances::mailbox::{Inbound, Mailbox, Mailboxes, Run};

/// How many of the least recently used actors are checked for an idle one: a full set is never walked, and busy ones go to
/// its other end.
const IDLE_SEARCH: usize = 4;

/// Starts the actor of an instance; `WarmInstances` does not know what actors do.
pub(crate) trait StartsActors: Send + Sync {
    /// Starts an actor that works off `mailbox` whenever it is told to run.
    fn start_actor(self: Arc<Self>, instance: InstanceId, mailbox: Arc<Mailbox>) -> Result<ActorRef<Run>, SpawnErr>;
}

/// The warm instances of a node.
pub(crate) struct WarmInstances {
    /// Locked before a mailbox, never after it.
    set: Mutex<WarmSet>,
    pub(crate) skipped: Skipped,
    /// Who starts actors. Weak, since the starter holds this set.
    starter: OnceLock<Weak<dyn StartsActors>>,
    max: usize,
    passivate_after: Duration,
    stopping: CancellationToken,
}

/// How many instances are kept warm, and for how long without use.
pub(crate) struct WarmOptions {
    pub(crate) max: usize,
    pub(crate) passivate_after: Duration,
}

/// The actors, and the instances that wait for room.
struct WarmSet {
    actors: LruCache<InstanceId, Warm>,
    waiting: BTreeMap<InstanceId, Arc<Mailbox>>,
    /// Longest waiting first, and since when each waits.
    order: VecDeque<(InstanceId, Instant)>,
}

impl Default for WarmSet {
    fn default() -> Self {
        Self { actors: LruCache::unbounded(), waiting: BTreeMap::new(), order: VecDeque::new() }
    }
}

/// Nudges that were dropped, as too many instances waited for room; their messages are in the inboxes.
#[derive(Default)]
pub(crate) struct Skipped {
    noted: AtomicU64,
    swept: AtomicU64,
    more: Notify,
}

impl Skipped {
    fn note(&self) {
        self.noted.fetch_add(1, Ordering::AcqRel);
        self.more.notify_one();
    }

    /// Returns when something was skipped.
    pub(crate) async fn some(&self) {
        self.more.notified().await;
    }

    /// Asks for another sweep, since one has failed.
    pub(crate) fn sweep_is_due(&self) {
        self.more.notify_one();
    }

    /// Nudges skipped so far; a sweep that begins after this call finds all their messages.
    pub(crate) fn count(&self) -> u64 {
        self.noted.load(Ordering::Acquire)
    }

    /// A sweep has found the messages of the first `count` skipped nudges.
    pub(crate) fn swept(&self, count: u64) {
        self.swept.store(count, Ordering::Release);
    }

    fn is_none(&self) -> bool {
        self.swept.load(Ordering::Acquire) == self.count()
    }
}

/// A warm instance: its actor and what waits for it.
struct Warm {
    mailbox: Arc<Mailbox>,
    actor: ActorRef<Run>,
    used: Instant,
}

impl WarmInstances {
    pub(crate) fn new(options: WarmOptions, stopping: CancellationToken) -> Self {
        let WarmOptions { max, passivate_after } = options;
        let (set, skipped, starter) = (Mutex::default(), Skipped::default(), OnceLock::new());
        Self { set, skipped, starter, max, passivate_after, stopping }
    }

    /// Sets who starts actors; called once, before anything is delivered.
    pub(crate) fn set_starter(&self, starter: Weak<dyn StartsActors>) {
        let told = self.starter.set(starter);
        debug_assert!(told.is_ok(), "the warm instances were told twice who starts actors");
    }

    /// How many instances are warm.
    pub(crate) fn warm_count(&self) -> usize {
        self.lock().actors.len()
    }

    /// How many instances wait for room.
    pub(crate) fn waiting_count(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Who waits longest for room, for how long, and how many wait with it.
    pub(crate) fn longest_waiting(&self) -> Option<(InstanceId, Duration, usize)> {
        let warm = self.lock();
        let (instance, since) = warm.order.front()?;
        Some((instance.clone(), since.elapsed(), warm.waiting.len()))
    }

    /// How much waits in all mailboxes.
    #[cfg(feature = "telemetry")]
    pub(crate) fn mailbox_depth(&self) -> usize {
        let warm = self.lock();
        let mailboxes = warm.actors.iter().map(|(_, entry)| &entry.mailbox).chain(warm.waiting.values());
        mailboxes.map(|mailbox| mailbox.lock().inbound.len()).sum()
    }

    /// Delivers input whose message is in the instance's inbox. If too many instances wait for room, the inbox sweep, which waits
    /// itself, delivers it later.
    pub(crate) fn bring(&self, instance: &InstanceId, inbound: Inbound) {
        let is_full = {
            let warm = self.lock();
            let known = warm.actors.contains(instance) || warm.waiting.contains_key(instance);
            !known && warm.waiting.len() >= self.max
        };
        // Others may join the queue before `deliver` does, so it may grow a little beyond `max`: no harm is done.
        if is_full {
            self.skipped.note();
        } else {
            self.deliver(instance, inbound);
        }
    }

    /// Lets go of an actor if nothing waits for it. Its memory is a cache, so this is always allowed.
    pub(crate) fn retire(&self, instance: &InstanceId, mailbox: &Arc<Mailbox>) -> bool {
        let mut warm = self.lock();
        // `deliver` pushes under this lock, so nothing arrives between the check of the mailbox and the removal.
        let mine = warm.actors.peek(instance).is_some_and(|entry| Arc::ptr_eq(&entry.mailbox, mailbox));
        if !mine || !mailbox.lock().inbound.is_empty() {
            return false;
        }
        if let Some(entry) = warm.actors.pop(instance) {
            entry.actor.stop(None);
        }
        self.admit_waiting(&mut warm);
        true
    }

    /// An actor has become idle: if instances wait for room, one of the least recently used idle actors makes room.
    pub(crate) fn idle(&self, instance: &InstanceId, mailbox: &Arc<Mailbox>) {
        let mut warm = self.lock();
        if warm.waiting.is_empty() {
            return;
        }
        let evicted = pop_idle(&mut warm.actors);
        drop(warm);
        if evicted {
            self.admit_waiting(&mut self.lock());
        } else if !mailbox.lock().scheduled {
            // Input that has arrived since the check is safe: `retire` checks again, under the lock of the set.
            self.retire(instance, mailbox);
        }
    }

    /// Passivates actors that have not been used for a while.
    pub(crate) fn passivate_idle(&self) {
        let mut warm = self.lock();
        let after = self.passivate_after;
        while warm.actors.peek_lru().is_some_and(|(_, entry)| entry.used.elapsed() >= after) {
            if !pop_idle(&mut warm.actors) {
                return;
            }
        }
    }

    /// Stops all idle actors. A busy one checks at its next turn whether this node still holds its shard; if it were stopped
    /// now, a second actor could read the store before the first one's turn is written there.
    pub(crate) fn passivate_unused(&self) {
        let mut warm = self.lock();
        let is_unused = |(_, entry): &(&InstanceId, &Warm)| !entry.mailbox.lock().scheduled;
        let unused: Vec<InstanceId> = warm.actors.iter().filter(is_unused).map(|(id, _)| id.clone()).collect();
        for entry in unused.iter().filter_map(|id| warm.actors.pop(id)) {
            entry.actor.stop(None);
        }
    }

    /// Stops all actors; the turns that they were deciding are refused by the store or decided again by the next owner.
    pub(crate) fn passivate_all(&self) {
        let mut warm = self.lock();
        while let Some((_, entry)) = warm.actors.pop_lru() {
            entry.actor.stop(None);
            entry.mailbox.lock().inbound.drain(..).for_each(refuse);
        }
        warm.order.clear();
        for (_, mailbox) in std::mem::take(&mut warm.waiting) {
            mailbox.lock().inbound.drain(..).for_each(refuse);
        }
    }

    /// Whether no actor has anything to do.
    pub(crate) fn is_quiet(&self) -> bool {
        let warm = self.lock();
        self.skipped.is_none()
            && warm.waiting.is_empty()
            && warm.actors.iter().all(|(_, entry)| !entry.mailbox.lock().scheduled)
    }

    fn admit_waiting(&self, warm: &mut WarmSet) {
        while warm.actors.len() < self.max {
            let Some((instance, _)) = warm.order.pop_front() else { return };
            if let Some(mailbox) = warm.waiting.remove(&instance) {
                self.spawn(&mut warm.actors, instance, mailbox);
            }
        }
    }

    /// Starts the actor of a mailbox that has input.
    fn spawn(&self, actors: &mut LruCache<InstanceId, Warm>, instance: InstanceId, mailbox: Arc<Mailbox>) {
        let starter = self.starter.get().and_then(Weak::upgrade);
        let Some(starter) = starter else {
            // The node is being dropped.
            return mailbox.lock().inbound.drain(..).for_each(refuse);
        };
        match starter.start_actor(instance.clone(), Arc::clone(&mailbox)) {
            Ok(actor) => {
                let _accepted = actor.cast(Run);
                actors.push(instance, Warm { mailbox, actor, used: Instant::now() });
            }
            Err(error) => {
                tracing::error!(target: crate::telemetry::logging::RUNTIME, %instance, %error, "no actor could be started");
                mailbox.lock().inbound.drain(..).for_each(refuse);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, WarmSet> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mailboxes for WarmInstances {
    /// Starts the actor if there is none and there is room for one; without room, the instance waits.
    fn deliver(&self, instance: &InstanceId, inbound: Inbound) {
        if self.stopping.is_cancelled() {
            return refuse(inbound);
        }
        let mut warm = self.lock();
        if let Some(entry) = warm.actors.get_mut(instance) {
            entry.used = Instant::now();
            if entry.mailbox.push(inbound) {
                // Actors leave the map under this lock before they are stopped, so this one still takes messages.
                let _accepted = entry.actor.cast(Run);
            }
            return;
        }
        if let Some(mailbox) = warm.waiting.get(instance) {
            mailbox.push(inbound);
            return;
        }
        let mailbox = Arc::new(Mailbox::default());
        if warm.actors.len() < self.max || pop_idle(&mut warm.actors) {
            mailbox.push(inbound);
            self.spawn(&mut warm.actors, instance.clone(), mailbox);
        } else {
            // The start message waits in the store, not here: it may be large, and many instances may wait.
            mailbox.push(if matches!(inbound, Inbound::Start(_)) { Inbound::Nudge } else { inbound });
            warm.order.push_back((instance.clone(), Instant::now()));
            warm.waiting.insert(instance.clone(), mailbox);
        }
    }
}

/// Stops one of the least recently used actors if it is idle; busy ones on the way count as used just now.
fn pop_idle(actors: &mut LruCache<InstanceId, Warm>) -> bool {
    for _ in 0..IDLE_SEARCH {
        let Some((instance, entry)) = actors.pop_lru() else { return false };
        if !entry.mailbox.lock().scheduled {
            entry.actor.stop(None);
            return true;
        }
        actors.push(instance, Warm { used: Instant::now(), ..entry });
    }
    false
}

/// Turns input away: workers ask again, the store has the rest.
fn refuse(inbound: Inbound) {
    if let Inbound::Direct(_, answer) | Inbound::Ask { answer, .. } = inbound {
        let _gone = answer.send(ReportReply::TryAgain);
    }
}
