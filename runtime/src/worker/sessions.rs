//! The sessions that this worker uses.
//!
//! The store decides who holds a session; this file counts the items that run in it. Calls to the store about one session are
//! made one at a time, so a claim never overtakes a release.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use outlast_core::WorkerId;
use outlast_storage::{SessionClaim, Store};
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

use crate::RuntimeOptions;
use crate::telemetry::logging::RUNTIME;

/// A claim is renewed in the store at least this often while an item of the session runs, so that its last use is known to a minute.
const RENEW_EVERY_MAX: Duration = Duration::from_secs(60);
/// Shortest claim: a live worker keeps an unused session this long unless it releases it. Shorter ones would end between the
/// items of one turn.
const CLAIM_MIN: Duration = Duration::from_secs(1);
/// Pause after a renewal or release that failed: a store that refuses at once would be asked without end.
const TELL_AGAIN: Duration = Duration::from_millis(500);
/// Shortest time between two looks for idle sessions: an idle one gives way within the blink of an eye, at a cost of nothing.
const LOOK_MIN: Duration = Duration::from_millis(50);

/// The sessions that a worker uses.
pub(crate) struct Sessions {
    worker: WorkerId,
    store: Arc<dyn Store>,
    max: usize,
    idle: Duration,
    look_every: Duration,
    table: Mutex<Table>,
    /// There is room again, or a session is not used any more.
    changed: Notify,
    /// The store has to be told something.
    due: Notify,
}

#[derive(Default)]
struct Table {
    sessions: BTreeMap<String, Session>,
    lives: u64,
    /// The worker is leaving: idle sessions are released at once.
    leaving: bool,
    /// Sessions no longer used; the broker is still to be told.
    ended: Vec<String>,
}

struct Session {
    /// Tells a session from an earlier use of the same id here.
    life: u64,
    /// Items of it that run here, or wait for the store's answer.
    users: usize,
    used: Instant,
    /// When the store was asked last, if it answered that this worker holds the session.
    confirmed: Option<Instant>,
    /// The store was asked for it, so it may take this worker for the holder until it is told otherwise.
    may_be_ours: bool,
    /// When the store could not be told last.
    failed: Option<Instant>,
    /// It is about to be released.
    evicted: bool,
    /// The claim or release under way. Once its channel is closed, the next one may begin.
    talk: Option<broadcast::Receiver<Claim>>,
}

/// Whether an item of a session may run here.
#[derive(Clone, Debug)]
pub(crate) enum Claim {
    /// The session is this worker's.
    Mine,
    /// Another worker holds it.
    Other(WorkerId),
    /// The store did not answer.
    Unknown,
}

/// One item's use of a session, until it is dropped.
pub(crate) struct SessionUse {
    sessions: Arc<Sessions>,
    session: String,
    life: u64,
}

/// What the store has to be told.
enum Talk {
    Renew(SessionUse, broadcast::Sender<Claim>),
    Release(String, broadcast::Sender<Claim>),
}

/// What an item of a session does next.
enum Turn {
    Known(Claim),
    Ask(broadcast::Sender<Claim>),
    Wait(broadcast::Receiver<Claim>),
}

impl Session {
    fn talks(&self) -> bool {
        self.talk.as_ref().is_some_and(|talk| !talk.is_closed())
    }

    /// Whether the store is to hear that it is used.
    fn is_to_renew(&self, half: Duration) -> bool {
        self.users > 0 && self.confirmed.is_some_and(|at| at.elapsed() >= half) && self.may_tell(half)
    }

    /// Whether the last try was not a failure a moment ago.
    fn may_tell(&self, half: Duration) -> bool {
        self.failed.is_none_or(|at| at.elapsed() >= TELL_AGAIN.min(half))
    }

    /// Whether it takes up room.
    fn counts(&self) -> bool {
        self.users > 0 || !self.evicted
    }

    fn begin_talk(&mut self) -> broadcast::Sender<Claim> {
        // Not a watch, which wakes those who wait in an order that no seed decides.
        let (answer, talk) = broadcast::channel(1);
        self.may_be_ours = true;
        self.talk = Some(talk);
        answer
    }
}

impl Table {
    fn is_full(&self, max: usize) -> bool {
        self.sessions.len() >= max && self.sessions.values().filter(|session| session.counts()).count() >= max
    }

    /// The session that has been idle for longest and for which nothing waits here.
    fn least_used(&self, waits: &dyn Fn(&str) -> bool) -> Option<String> {
        let idle = self.sessions.iter().filter(|(_, session)| session.users == 0 && !session.evicted);
        let idle = idle.filter(|(name, _)| !waits(name));
        idle.min_by_key(|(_, session)| session.used).map(|(name, _)| name.clone())
    }

    /// Forgets a session, and lets the broker know.
    fn end(&mut self, session: &str) {
        self.sessions.remove(session);
        self.ended.push(session.to_owned());
    }
}

impl Sessions {
    pub(crate) fn new(worker: WorkerId, store: Arc<dyn Store>, options: &RuntimeOptions) -> Arc<Self> {
        let idle = options.session_idle_timeout;
        let look_every = options.session_cleanup_interval.min(idle).min(renew_every(idle) / 2).max(LOOK_MIN);
        let (table, changed, due) = (Mutex::default(), Notify::new(), Notify::new());
        let max = options.max_sessions_per_runtime;
        Arc::new(Self { worker, store, max, idle, look_every, table, changed, due })
    }

    /// Whether there is room for a session that nobody holds, if need be by releasing an idle one.
    pub(crate) fn has_room(&self, waits: &dyn Fn(&str) -> bool) -> bool {
        let table = self.lock();
        !table.is_full(self.max) || table.least_used(waits).is_some()
    }

    /// Counts one more item of a session before it runs; `None` if there is no room for the session. At the limit, the session
    /// that has been idle for longest gives way, unless `waits` says that something waits for it.
    pub(crate) fn enter(self: &Arc<Self>, session: &str, waits: &dyn Fn(&str) -> bool) -> Option<SessionUse> {
        let mut table = self.lock();
        if !table.sessions.get(session).is_some_and(Session::counts) && table.is_full(self.max) {
            let least_used = table.least_used(waits)?;
            if let Some(idle) = table.sessions.get_mut(&least_used) {
                idle.evicted = true;
                self.due.notify_one();
            }
        }
        table.lives += 1;
        let life = table.lives;
        let new = || Session {
            life,
            users: 0,
            used: Instant::now(),
            confirmed: None,
            may_be_ours: false,
            failed: None,
            evicted: false,
            talk: None,
        };
        let entry = table.sessions.entry(session.to_owned()).or_insert_with(new);
        entry.users += 1;
        // The session stays, unless its release is already under way.
        entry.evicted &= entry.talks();
        Some(SessionUse { sessions: Arc::clone(self), session: session.to_owned(), life: entry.life })
    }

    /// Whether the store may take this worker for the holder of a session that has no room here.
    pub(crate) fn may_hold(&self, session: &str) -> bool {
        self.lock().sessions.contains_key(session)
    }

    /// Returns when there may be room again, or a session is not used any more.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes the sessions that are no longer used since the last call.
    pub(crate) fn take_ended(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().ended)
    }

    /// Releases idle sessions and renews used ones in the store, several at once, for ever.
    pub(crate) async fn keep(self: &Arc<Self>) {
        let mut look = tokio::time::interval(self.look_every);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut talks = FuturesUnordered::new();
        loop {
            talks.extend(self.take_due().into_iter().map(|talk| self.tell(talk)));
            tokio::select! {
                biased;
                Some(()) = talks.next(), if !talks.is_empty() => {}
                () = self.due.notified() => {}
                _ = look.tick() => {}
            }
        }
    }

    /// Begins to leave: every session is released as soon as none of its items runs. Returns when the idle ones are released.
    pub(crate) async fn leave(self: &Arc<Self>) {
        self.lock().leaving = true;
        let releases: FuturesUnordered<_> = self.take_due().into_iter().map(|talk| self.tell(talk)).collect();
        releases.collect::<()>().await;
    }

    fn take_due(self: &Arc<Self>) -> Vec<Talk> {
        let mut table = self.lock();
        let (leaving, half) = (table.leaving, renew_every(self.idle) / 2);
        let mut talks = Vec::new();
        for (name, session) in table.sessions.iter_mut().filter(|(_, session)| !session.talks()) {
            let is_idle = session.evicted || leaving || session.used.elapsed() >= self.idle;
            if session.users == 0 && is_idle && session.may_tell(half) {
                // From now on, a new item of the session waits for this release and then claims anew.
                session.evicted = true;
                session.confirmed = None;
                talks.push(Talk::Release(name.clone(), session.begin_talk()));
            } else if session.is_to_renew(half) {
                session.users += 1;
                let used = SessionUse { sessions: Arc::clone(self), session: name.clone(), life: session.life };
                talks.push(Talk::Renew(used, session.begin_talk()));
            }
        }
        talks
    }

    async fn tell(&self, talk: Talk) {
        match talk {
            Talk::Renew(used, answer) => drop(self.ask(&used, answer).await),
            Talk::Release(session, answer) => {
                let released = self.store.release_sessions(&self.worker, Some(&session)).await;
                if let Err(error) = &released {
                    tracing::warn!(target: RUNTIME, session, %error, "session was not released, trying again");
                }
                let mut table = self.lock();
                match table.sessions.get_mut(&session) {
                    // An item has arrived meanwhile; it claims the session anew.
                    Some(entry) if entry.users > 0 => (entry.evicted, entry.talk) = (false, None),
                    // Others are told that it is this worker's until the store knows better: it is not forgotten here either.
                    Some(entry) if released.is_err() => (entry.talk, entry.failed) = (None, Some(Instant::now())),
                    Some(_) => table.end(&session),
                    None => {}
                }
                self.tell_worker(&table);
                drop(table);
                // Dropped last: it wakes waiting items, which must find the table up to date.
                drop(answer);
            }
        }
    }

    /// Asks the store whose session it is, and tells all who wait for the answer.
    async fn ask(&self, used: &SessionUse, answer: broadcast::Sender<Claim>) -> Claim {
        // Taken before the call, so never later than the moment from which the store counts.
        let asked = Instant::now();
        let claim = match self.store.claim_session(&used.session, &self.worker, self.idle.max(CLAIM_MIN)).await {
            Ok(SessionClaim::Mine) => Claim::Mine,
            Ok(SessionClaim::Other(worker)) => Claim::Other(worker),
            Err(error) => {
                tracing::warn!(target: RUNTIME, session = used.session, %error, "session was not claimed");
                Claim::Unknown
            }
        };
        let mut table = self.lock();
        if let Some(session) = table.sessions.get_mut(&used.session).filter(|session| session.life == used.life) {
            session.talk = None;
            match &claim {
                Claim::Mine => (session.confirmed, session.failed) = (Some(asked), None),
                // Items that run here go on; new ones go to the new holder.
                Claim::Other(_) => table.end(&used.session),
                // The last confirmation stays valid as long as it would have.
                Claim::Unknown => session.failed = Some(Instant::now()),
            }
        }
        self.tell_worker(&table);
        drop(table);
        // Perhaps nobody is waiting for it.
        let _unheard = answer.send(claim.clone());
        claim
    }

    fn tell_worker(&self, table: &Table) {
        if !table.ended.is_empty() || table.is_full(self.max) {
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SessionUse {
    /// Makes sure that this worker holds the session. Items that arrive together share one answer of the store.
    pub(crate) async fn claim(&self) -> Claim {
        loop {
            match self.turn() {
                Turn::Known(claim) => return claim,
                Turn::Ask(answer) => return self.sessions.ask(self, answer).await,
                // Closed without an answer: it was a release, or the asker is gone. Look again.
                Turn::Wait(mut talk) => {
                    if let Ok(claim) = talk.recv().await {
                        return claim;
                    }
                }
            }
        }
    }

    fn turn(&self) -> Turn {
        let mut table = self.sessions.lock();
        let session = table.sessions.get_mut(&self.session).filter(|session| session.life == self.life);
        // The session was lost meanwhile: the item is requeued and goes to the new holder.
        let Some(session) = session else { return Turn::Known(Claim::Unknown) };
        if let Some(talk) = session.talk.as_ref().filter(|_| session.talks()) {
            // The answer is sent after the talk was taken out under this lock, so this one hears it.
            return Turn::Wait(talk.resubscribe());
        }
        let trusted = renew_every(self.sessions.idle);
        match session.confirmed {
            Some(at) if at.elapsed() < trusted => Turn::Known(Claim::Mine),
            _ => Turn::Ask(session.begin_talk()),
        }
    }
}

impl Drop for SessionUse {
    fn drop(&mut self) {
        let mut table = self.sessions.lock();
        let Some(session) = table.sessions.get_mut(&self.session).filter(|session| session.life == self.life) else {
            return;
        };
        session.users -= 1;
        if session.users > 0 {
            return;
        }
        session.used = Instant::now();
        // The store was not asked, or has not confirmed that this worker holds the session.
        let is_unconfirmed = session.confirmed.is_none() && !session.talks();
        if is_unconfirmed && session.may_be_ours {
            session.evicted = true;
            self.sessions.due.notify_one();
        } else if is_unconfirmed {
            table.end(&self.session);
        }
        if table.leaving {
            self.sessions.due.notify_one();
        }
        self.sessions.tell_worker(&table);
    }
}

/// How long a confirmation is trusted: at most a quarter of the time for which nobody else is given the session.
fn renew_every(idle: Duration) -> Duration {
    RENEW_EVERY_MAX.min(idle.max(CLAIM_MIN) / 4)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures::FutureExt as _;
    use outlast_client::Provider as _;
    use outlast_core::{NodeId, WorkerId};
    use outlast_storage::{NodeInfo, SessionClaim, Store};

    use super::{Claim, SessionUse, Sessions, Turn};
    use crate::RuntimeOptions;
    use crate::providers::sqlite::SqliteProvider;

    /// A worker that may hold two sessions, and the store.
    async fn sessions() -> (Arc<Sessions>, Arc<dyn Store>) {
        let provider = SqliteProvider::new_in_memory().await.expect("a store in memory opens");
        let store = provider.store();
        for id in ["here", "there"] {
            let node = NodeInfo { id: NodeId::new(id), handlers: Vec::new(), worker: None };
            store.join(node).await.expect("a store in memory answers");
        }
        let options = RuntimeOptions { max_sessions_per_runtime: 2, ..RuntimeOptions::default() };
        (Sessions::new(WorkerId::new("here"), Arc::clone(&store), &options), store)
    }

    fn enter(sessions: &Arc<Sessions>, session: &str) -> SessionUse {
        sessions.enter(session, &|_| false).expect("there is room")
    }

    async fn held(store: &Arc<dyn Store>, names: [&str; 3]) -> [bool; 3] {
        let owners = store.session_owners(&names.map(str::to_owned)).await.expect("a store in memory answers");
        [0, 1, 2].map(|index| owners[index].is_some())
    }

    #[tokio::test]
    async fn the_least_recently_used_idle_session_gives_way() {
        let (sessions, store) = sessions().await;
        for name in ["a", "b", "a"] {
            assert!(matches!(enter(&sessions, name).claim().await, Claim::Mine));
        }
        let c = enter(&sessions, "c");
        assert!(matches!(c.claim().await, Claim::Mine));
        for talk in sessions.take_due() {
            sessions.tell(talk).await;
        }
        assert_eq!(held(&store, ["a", "b", "c"]).await, [true, false, true]);
        assert_eq!(sessions.take_ended(), ["b"]);
        // One that something waits for does not give way, nor does one in use.
        assert!(sessions.enter("d", &|session| session == "a").is_none());
        assert!(!sessions.has_room(&|session| session == "a") && sessions.has_room(&|_| false));
    }

    #[tokio::test]
    async fn items_that_come_together_wait_for_one_answer() {
        let (sessions, _) = sessions().await;
        let (first, second) = (enter(&sessions, "s"), enter(&sessions, "s"));
        let Turn::Ask(answer) = first.turn() else { panic!("nobody has asked the store yet") };
        let mut waiting = std::pin::pin!(second.claim());
        assert!(waiting.as_mut().now_or_never().is_none(), "the store has not answered");
        sessions.ask(&first, answer).await;
        assert!(matches!(waiting.as_mut().now_or_never(), Some(Claim::Mine)));
    }

    #[tokio::test]
    async fn when_another_worker_wins_all_that_waited_are_told() {
        let (sessions, store) = sessions().await;
        let (first, second) = (enter(&sessions, "s"), enter(&sessions, "s"));
        let Turn::Ask(answer) = first.turn() else { panic!("nobody has asked the store yet") };
        let mut waiting = std::pin::pin!(second.claim());
        assert!(waiting.as_mut().now_or_never().is_none());
        let there = WorkerId::new("there");
        let claim = store.claim_session("s", &there, Duration::from_secs(60)).await;
        assert_eq!(claim.expect("a store in memory answers"), SessionClaim::Mine);
        assert!(matches!(sessions.ask(&first, answer).await, Claim::Other(holder) if holder == there));
        assert!(matches!(waiting.as_mut().now_or_never(), Some(Claim::Other(holder)) if holder == there));
        drop(first);
        assert!(sessions.lock().sessions.is_empty());
    }

    #[tokio::test]
    async fn a_claim_waits_for_a_release_under_way() {
        let (sessions, store) = sessions().await;
        drop(enter(&sessions, "s").claim().await);
        sessions.lock().leaving = true;
        let mut release = sessions.take_due();
        let again = enter(&sessions, "s");
        let mut claiming = std::pin::pin!(again.claim());
        assert!(claiming.as_mut().now_or_never().is_none());
        sessions.tell(release.pop().expect("an idle session is released")).await;
        assert!(matches!(claiming.await, Claim::Mine));
        assert_eq!(held(&store, ["s", "a", "b"]).await, [true, false, false]);
    }

    /// A store that refuses at once would be asked without end.
    #[tokio::test]
    async fn what_the_store_refused_is_not_told_again_at_once() {
        let (sessions, _) = sessions().await;
        let used = enter(&sessions, "s");
        assert!(matches!(used.claim().await, Claim::Mine));
        tokio::time::pause();
        tokio::time::advance(super::renew_every(sessions.idle) / 2).await;
        assert_eq!(sessions.take_due().len(), 1);
        let failed = |sessions: &Sessions| {
            let mut table = sessions.lock();
            table.sessions.get_mut("s").expect("it is used").failed = Some(tokio::time::Instant::now());
        };
        failed(&sessions);
        assert!(sessions.take_due().is_empty());
        tokio::time::advance(super::TELL_AGAIN).await;
        assert_eq!(sessions.take_due().len(), 1);
        // So is a release.
        drop(used);
        sessions.lock().leaving = true;
        failed(&sessions);
        assert!(sessions.take_due().is_empty());
        tokio::time::advance(super::TELL_AGAIN).await;
        assert_eq!(sessions.take_due().len(), 1);
    }

    #[tokio::test]
    async fn an_asker_that_is_gone_holds_nobody_up() {
        let (sessions, _) = sessions().await;
        let (first, second) = (enter(&sessions, "s"), enter(&sessions, "s"));
        let Turn::Ask(answer) = first.turn() else { panic!("nobody has asked the store yet") };
        drop((answer, first));
        assert!(matches!(second.claim().await, Claim::Mine));
    }
}
