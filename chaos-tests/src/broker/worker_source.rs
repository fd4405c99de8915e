//! A worker's end of the stream of work.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use outlast_broker::{Broker as _, Control, Delivery, Settle, WorkSource, WorkerProfile};
use outlast_core::{ActivityItem, ActivityRef};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::faults::Fate;
use super::{Link, SimulatedBrokerServer};
use crate::lock::locked;

/// What a silent worker has is given to others after this.
const ACK_WAIT: Duration = Duration::from_secs(5);
/// How often a worker that is cut off looks whether it still is.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) struct Source {
    server: Arc<SimulatedBrokerServer>,
    link: Arc<Link>,
    profile: WorkerProfile,
    control: mpsc::UnboundedSender<Control>,
    /// The queues that it is seated at, and their number.
    seat: Option<(u64, Box<dyn WorkSource>)>,
    admits: bool,
    held: BTreeSet<String>,
    /// What was handed out and not settled.
    given: Given,
    handed_out: u64,
    /// What is handed out a second time.
    doubles: VecDeque<Arc<ActivityItem>>,
    closed: bool,
}

impl Source {
    pub(super) fn new(
        server: Arc<SimulatedBrokerServer>,
        link: Arc<Link>,
        profile: WorkerProfile,
        control: mpsc::UnboundedSender<Control>,
    ) -> Self {
        let admits = profile.sessions_max > 0;
        let (held, doubles) = (BTreeSet::new(), VecDeque::new());
        let (seat, given) = (None, Given::default());
        let (handed_out, closed) = (0, false);
        Self { server, link, profile, control, seat, admits, held, given, handed_out, doubles, closed }
    }

    /// Takes a seat at the queues that there are now.
    pub(super) async fn sit_down(&mut self) {
        let (number, queues) = {
            let mut stream = locked(&self.server.stream);
            stream.sit_down(&self.profile.id);
            (stream.number(), stream.broker())
        };
        if self.seat.as_ref().is_some_and(|(at, _)| *at == number) {
            return;
        }
        let Ok((mut source, mut controls)) = queues.pull(self.profile.clone()).await else { return };
        source.admit_sessions(self.admits);
        self.held.iter().for_each(|session| source.hold_session(session));
        self.seat = Some((number, source));
        let (server, link, control) = (Arc::clone(&self.server), Arc::clone(&self.link), self.control.clone());
        tokio::spawn(async move {
            while let Some(told) = controls.recv().await {
                let is_lost = matches!(server.fate(), Fate::Lost | Fate::Refused);
                if !is_lost && link.is_open() && control.send(told).is_err() {
                    return;
                }
            }
        });
    }

    fn hand_out(&mut self, deliveries: Vec<Delivery>) -> Vec<Delivery> {
        let mut handed = Vec::new();
        for delivery in deliveries {
            if locked(&self.server.stream).is_doomed(&delivery.item.activity()) {
                (delivery.settle)(Settle::Ack);
                continue;
            }
            let fate = self.server.fate();
            if fate == Fate::Doubled {
                self.doubles.push_back(delivery.item.clone());
            }
            let number = self.seat.as_ref().map_or(0, |(number, _)| *number);
            self.handed_out += 1;
            locked(&self.given).insert(self.handed_out, delivery.settle);
            let held = Held {
                server: Arc::clone(&self.server),
                link: Arc::clone(&self.link),
                activity: delivery.item.activity(),
                stream: number,
                given: Arc::clone(&self.given),
                number: self.handed_out,
            };
            handed.push(Delivery { settle: Box::new(move |settle| held.settle(settle)), ..delivery });
        }
        handed
    }

    fn seated(&mut self) -> Option<&mut Box<dyn WorkSource>> {
        self.seat.as_mut().map(|(_, source)| source)
    }
}

#[async_trait]
impl WorkSource for Source {
    async fn next(&mut self, room: usize) -> Option<Vec<Delivery>> {
        loop {
            if self.closed {
                return None;
            }
            if !self.link.is_open() {
                sleep(LOOK_EVERY).await;
                continue;
            }
            if let Some(item) = self.doubles.pop_front() {
                // A copy: whatever it comes to, the stream does not hear of it.
                return Some(vec![Delivery { item, queued_ms: 0, redelivered: false, settle: Box::new(drop) }]);
            }
            let server = Arc::clone(&self.server);
            // Before the seat is taken: a stream that is replaced meanwhile is noticed.
            let mut replaced = std::pin::pin!(server.replaced.notified());
            replaced.as_mut().enable();
            self.sit_down().await;
            let (_, source) = self.seat.as_mut()?;
            let taken = tokio::select! {
                biased;
                () = replaced => continue,
                taken = source.next(room) => taken?,
            };
            let handed = self.hand_out(taken);
            if !handed.is_empty() {
                return Some(handed);
            }
        }
    }

    async fn has_waiting(&mut self) -> bool {
        match self.seated() {
            Some(source) => source.has_waiting().await,
            None => false,
        }
    }

    fn admit_sessions(&mut self, admit: bool) {
        self.admits = admit;
        if let Some(source) = self.seated() {
            source.admit_sessions(admit);
        }
    }

    fn hold_session(&mut self, session: &str) {
        self.held.insert(session.to_owned());
        if let Some(source) = self.seated() {
            source.hold_session(session);
        }
    }

    fn release_session(&mut self, session: &str) {
        self.held.remove(session);
        if let Some(source) = self.seated() {
            source.release_session(session);
        }
    }

    fn waits_for(&self, session: &str) -> bool {
        self.seat.as_ref().is_some_and(|(_, source)| source.waits_for(session))
    }

    async fn close(&mut self) {
        self.closed = true;
        if let Some(source) = self.seated() {
            source.close().await;
        }
    }

    async fn finish(&mut self) {
        if let Some(source) = self.seated() {
            source.finish().await;
        }
        drop(self.take_back());
    }
}

impl Source {
    /// All that was handed out and not settled: dropped, it goes to others.
    fn take_back(&self) -> BTreeMap<u64, SettleItem> {
        std::mem::take(&mut locked(&self.given))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let left = (self.seat.take(), self.take_back());
        locked(&self.server.stream).stand_up(&self.profile.id);
        if !self.link.is_open() {
            // The broker does not know that it is gone.
            later(left);
        }
    }
}

type SettleItem = Box<dyn FnOnce(Settle) + Send + Sync>;
type Given = Arc<Mutex<BTreeMap<u64, SettleItem>>>;

/// An item with a worker, as the broker sees it.
struct Held {
    server: Arc<SimulatedBrokerServer>,
    link: Arc<Link>,
    activity: ActivityRef,
    /// The number of the stream that it came from.
    stream: u64,
    given: Given,
    number: u64,
}

impl Held {
    fn take(&self) -> Option<SettleItem> {
        locked(&self.given).remove(&self.number)
    }

    fn settle(&self, how: Settle) {
        let Some(settle) = self.take() else { return };
        if !self.link.is_open() {
            return later(settle);
        }
        if how == Settle::Ack {
            let mut stream = locked(&self.server.stream);
            if stream.number() == self.stream {
                stream.take_out(&self.activity);
            }
        }
        if let Settle::Forward(holder) = &how
            && !locked(&self.server.stream).is_seated(holder)
        {
            // It waits for that worker until it is known to be gone.
            return later(settle);
        }
        settle(how);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let given = self.take();
        if !self.link.is_open() {
            later(given);
        }
    }
}

/// Drops something when the broker takes its worker for silent.
fn later<T: Send + 'static>(what: T) {
    // Outside of the simulation's executor everything ends.
    if let Ok(executor) = tokio::runtime::Handle::try_current() {
        executor.spawn(async move {
            sleep(ACK_WAIT).await;
            drop(what);
        });
    }
}
