//! News of instances: one subscription per instance that somebody in this process waits for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_nats::Subscriber;
use futures::StreamExt as _;
use outlast_core::{InstanceId, InstanceState, MessageId, decode, encode};
use tokio::sync::watch;

use super::hub::Hub;
use super::upkeep::keep;
use super::wire::{NewsBody, StatusBody};
use crate::{StatusUpdate, StatusWatch};

/// A larger status is read from the store.
const STATUS_BYTES_MAX: usize = 64 << 10;

/// Who waits for news of what.
pub(crate) struct NewsDesk {
    hub: Arc<Hub>,
    watched: Mutex<HashMap<InstanceId, watch::Sender<StatusUpdate>>>,
}

impl NewsDesk {
    pub(crate) fn new(hub: Arc<Hub>) -> Arc<Self> {
        Arc::new(Self { hub, watched: Mutex::default() })
    }

    /// Says what was committed; those in this process hear it from the server too.
    pub(crate) fn publish_status(
        &self,
        instance: &InstanceId,
        state: Option<&InstanceState>,
        begun_by: Option<&MessageId>,
    ) {
        if !self.hub.is_up() {
            return;
        }
        let status = state.map(|state| StatusBody::new(state, begun_by.cloned()));
        let mut body = encode(&NewsBody { status });
        if body.len() > STATUS_BYTES_MAX.min(self.hub.client.max_payload()) {
            body = encode(&NewsBody { status: None });
        }
        self.hub.outbox.send(self.hub.subjects.status(instance), body);
    }

    pub(crate) fn watch(self: &Arc<Self>, instance: &InstanceId) -> StatusWatch {
        let mut watched = self.lock();
        if let Some(sender) = watched.get(instance) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(StatusUpdate::default());
        watched.insert(instance.clone(), sender.clone());
        drop(watched);
        let (desk, hub, instance) = (Arc::downgrade(self), Arc::clone(&self.hub), instance.clone());
        tokio::spawn(keep(Arc::clone(&self.hub.troubles), "news", move || {
            listen(Weak::clone(&desk), Arc::clone(&hub), instance.clone(), sender.clone())
        }));
        receiver
    }

    /// Forgets an instance unless somebody has begun to wait again.
    fn forget(&self, instance: &InstanceId, sender: &watch::Sender<StatusUpdate>) -> bool {
        let mut watched = self.lock();
        let forgotten = sender.receiver_count() == 0;
        if forgotten {
            watched.remove(instance);
        }
        forgotten
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, watch::Sender<StatusUpdate>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes news on while somebody waits. After a reconnect everyone is told to look, as news may have been missed.
async fn listen(desk: Weak<NewsDesk>, hub: Arc<Hub>, instance: InstanceId, sender: watch::Sender<StatusUpdate>) {
    let mut letters = hub.client.subscribe(hub.subjects.status(&instance)).await.ok();
    let mut link = hub.link.clone();
    let mut connects = link.borrow_and_update().connects;
    // A connection that was not there took no subscription yet.
    if !hub.is_up() {
        connects = 0;
    }
    loop {
        tokio::select! {
            biased;
            letter = next(&mut letters) => match letter {
                Some(letter) => tell(&sender, decode::<NewsBody>(&letter.payload).ok().and_then(|body| body.status)),
                None => letters = None,
            },
            changed = link.changed() => {
                let now = *link.borrow_and_update();
                if changed.is_ok() && now.up && now.connects != connects {
                    connects = now.connects;
                    tell(&sender, None);
                }
            }
            () = sender.closed() => {
                let Some(desk) = desk.upgrade() else { return };
                if desk.forget(&instance, &sender) {
                    return;
                }
            }
        }
    }
}

fn tell(sender: &watch::Sender<StatusUpdate>, body: Option<StatusBody>) {
    sender.send_modify(|news| {
        let execution = body.as_ref().map_or(news.execution, |body| body.execution);
        let begun_by = body.as_ref().and_then(|body| body.begun_by.clone());
        *news = StatusUpdate { version: news.version + 1, status: body.map(Into::into), execution, begun_by };
    });
}

async fn next(letters: &mut Option<Subscriber>) -> Option<async_nats::Message> {
    match letters {
        Some(letters) => letters.next().await,
        None => std::future::pending().await,
    }
}
