//! The warm instances of a node: at most so many, the rest waits for room.
//!
//! Memory is a cache: an idle actor may be let go at any time and is hydrated again when something comes for it. A busy one
//! stays, so when all are busy newcomers wait, with what came for them, until one has nothing more to do.

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

/// Least recently used actors that are looked at for an idle one, so that a full set costs no walk.
const IDLE_SEARCH: usize = 4;

/// Starts the actor of an instance; the warm instances know no more of actors.
pub(crate) trait StartsActors: Send + Sync {
    /// Starts an actor that runs what comes into `mailbox` whenever it is told to.
    fn start_actor(self: Arc<Self>, instance: InstanceId, mailbox: Arc<Mailbox>) -> Result<ActorRef<Run>, SpawnErr>;
}

/// The warm instances of a node.
pub(crate) struct WarmInstances {
    /// Taken before the lock of a mailbox, never after it.
    set: Mutex<WarmSet>,
    pub(crate) skipped: Skipped,
    /// Who starts actors. Weak, since actors deliver to each other.
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

/// Actors, and the instances that wait to become one.
struct WarmSet {
    actors: LruCache<InstanceId, Warm>,
    waiting: BTreeMap<InstanceId, Arc<Mailbox>>,
    /// Longest waiting first, and since when each does.
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

    /// A sweep did not succeed: another one is due.
    pub(crate) fn sweep_is_due(&self) {
        self.more.notify_one();
    }

    /// How much was skipped until now: a sweep that begins after this finds all of it.
    pub(crate) fn count(&self) -> u64 {
        self.noted.load(Ordering::Acquire)
    }

    /// A sweep has found so much.
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

    /// Who starts actors from now on; told once, before anything is delivered.
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

    /// Brings what the inbox of an instance has, unless too many instances wait for room: then it stays in the store, and the sweep
    /// of the inboxes brings it, which waits itself.
    pub(crate) fn bring(&self, instance: &InstanceId, inbound: Inbound) {
        let is_full = {
            let warm = self.lock();
            let known = warm.actors.contains(instance) || warm.waiting.contains_key(instance);
            !known && warm.waiting.len() >= self.max
        };
        if is_full {
            self.skipped.note();
        } else {
            self.deliver(instance, inbound);
        }
    }

    /// Lets go of an actor if nothing waits for it. Its memory is a cache, so this is always allowed.
    pub(crate) fn retire(&self, instance: &InstanceId, mailbox: &Arc<Mailbox>) -> bool {
        let mut warm = self.lock();
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

    /// An actor has nothing more to do: if others wait for room, the least recently used idle one makes it.
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
            self.retire(instance, mailbox);
        }
    }

    /// Passivates what has not been used for a while.
    pub(crate) fn passivate_idle(&self) {
        let mut warm = self.lock();
        let after = self.passivate_after;
        while warm.actors.peek_lru().is_some_and(|(_, entry)| entry.used.elapsed() >= after) {
            if !pop_idle(&mut warm.actors) {
                return;
            }
        }
    }

    /// Lets go of all that has nothing to do. Whatever is busy looks itself whether its shard is still here, at its next
    /// turn; were it stopped now, a second actor could read the store before this turn is written there.
    pub(crate) fn passivate_unused(&self) {
        let mut warm = self.lock();
        let is_unused = |(_, entry): &(&InstanceId, &Warm)| !entry.mailbox.lock().scheduled;
        let unused: Vec<InstanceId> = warm.actors.iter().filter(is_unused).map(|(id, _)| id.clone()).collect();
        for entry in unused.iter().filter_map(|id| warm.actors.pop(id)) {
            entry.actor.stop(None);
        }
    }

    /// Stops all actors; whatever they were deciding is refused by the store or decided again by whoever comes next.
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

    /// Makes the actor of a mailbox that has something.
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
    /// The actor is started when there is none and room for one; otherwise the instance waits.
    fn deliver(&self, instance: &InstanceId, inbound: Inbound) {
        if self.stopping.is_cancelled() {
            return refuse(inbound);
        }
        let mut warm = self.lock();
        if let Some(entry) = warm.actors.get_mut(instance) {
            entry.used = Instant::now();
            if entry.mailbox.push(inbound) {
                // A stopped actor was taken out of the map under this very lock, so this one takes messages.
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
            // What its start carries waits in the store: it may be large, and many may wait.
            mailbox.push(if matches!(inbound, Inbound::Start(_)) { Inbound::Nudge } else { inbound });
            warm.order.push_back((instance.clone(), Instant::now()));
            warm.waiting.insert(instance.clone(), mailbox);
        }
    }
}

/// Lets one of the least recently used actors go, if it is idle; a busy one counts as used just now.
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

/// Whoever sent it asks again, or finds it in the store.
fn refuse(inbound: Inbound) {
    if let Inbound::Direct(_, answer) | Inbound::Ask { answer, .. } = inbound {
        let _gone = answer.send(ReportReply::TryAgain);
    }
}
