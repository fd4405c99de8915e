//! Status updates: one subscription per instance that somebody in this process waits for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_nats::Subscriber;
use futures::StreamExt as _;
use outlast_core::{InstanceId, InstanceState, MessageId, decode, encode};
use tokio::sync::watch;

use super::restarts::keep;
use super::server::Server;
use super::wire::{StatusBody, StatusUpdateBody};
use crate::{StatusUpdate, StatusWatch};

/// A larger status is read from the store: it is sent to everybody who waits, and most have asked for the end alone.
const STATUS_BYTES_MAX: usize = 64 << 10;

/// Who waits for updates of which instance.
pub(crate) struct StatusUpdates {
    server: Arc<Server>,
    watched: Mutex<HashMap<InstanceId, watch::Sender<StatusUpdate>>>,
}

impl StatusUpdates {
    pub(crate) fn new(server: Arc<Server>) -> Arc<Self> {
        Arc::new(Self { server, watched: Mutex::default() })
    }

    /// Says what was committed; those in this process hear it from the server too.
    pub(crate) fn publish_status(
        &self,
        instance: &InstanceId,
        state: Option<&InstanceState>,
        begun_by: Option<&MessageId>,
    ) {
        if !self.server.is_up() {
            return;
        }
        let status = state.map(|state| StatusBody::new(state, begun_by.cloned()));
        let mut body = encode(&StatusUpdateBody { status });
        if body.len() > STATUS_BYTES_MAX.min(self.server.client.max_payload()) {
            body = encode(&StatusUpdateBody { status: None });
        }
        self.server.outbox.send(self.server.subjects.status(instance), body);
    }

    pub(crate) fn watch(self: &Arc<Self>, instance: &InstanceId) -> StatusWatch {
        let mut watched = self.lock();
        if let Some(sender) = watched.get(instance) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(StatusUpdate::default());
        watched.insert(instance.clone(), sender.clone());
        drop(watched);
        let (updates, server, instance) = (Arc::downgrade(self), Arc::clone(&self.server), instance.clone());
        tokio::spawn(keep(Arc::clone(&self.server.troubles), "status updates", move || {
            listen(Weak::clone(&updates), Arc::clone(&server), instance.clone(), sender.clone())
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

/// Passes updates on while somebody waits. After a reconnect everyone is told to look, as updates may have been missed.
async fn listen(
    updates: Weak<StatusUpdates>,
    server: Arc<Server>,
    instance: InstanceId,
    sender: watch::Sender<StatusUpdate>,
) {
    let mut messages = server.client.subscribe(server.subjects.status(&instance)).await.ok();
    let mut link = server.link.clone();
    let mut connects = link.borrow_and_update().connects;
    // A connection that was not there took no subscription yet.
    if !server.is_up() {
        connects = 0;
    }
    loop {
        tokio::select! {
            biased;
            message = next(&mut messages) => match message {
                Some(message) => tell(&sender, decode::<StatusUpdateBody>(&message.payload).ok().and_then(|body| body.status)),
                None => messages = None,
            },
            changed = link.changed() => {
                let now = *link.borrow_and_update();
                if changed.is_ok() && now.up && now.connects != connects {
                    connects = now.connects;
                    tell(&sender, None);
                }
            }
            () = sender.closed() => {
                let Some(updates) = updates.upgrade() else { return };
                if updates.forget(&instance, &sender) {
                    return;
                }
            }
        }
    }
}

fn tell(sender: &watch::Sender<StatusUpdate>, body: Option<StatusBody>) {
    sender.send_modify(|update| {
        let execution = body.as_ref().map_or(update.execution, |body| body.execution);
        let begun_by = body.as_ref().and_then(|body| body.begun_by.clone());
        *update = StatusUpdate { version: update.version + 1, status: body.map(Into::into), execution, begun_by };
    });
}

async fn next(messages: &mut Option<Subscriber>) -> Option<async_nats::Message> {
    match messages {
        Some(messages) => messages.next().await,
        None => std::future::pending().await,
    }
}
