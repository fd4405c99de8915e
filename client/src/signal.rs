//! Sending something to a running instance.

use outlast_core::{InstanceId, Message, MessageKind};
use outlast_storage::SendOptions;
use serde::Serialize;

use crate::client::to_text;
use crate::{Client, ClientError};

impl Client {
    /// Raises an ephemeral event: the instance takes it if it waits for it now.
    pub async fn raise_event(
        &self,
        instance: impl Into<String>,
        event_name: impl Into<String>,
        data: impl Into<String>,
    ) -> Result<(), ClientError> {
        let (name, data) = (event_name.into(), data.into());
        self.options.limits.check_name("event name", &name)?;
        self.options.limits.check_payload("event data", &data)?;
        self.send(instance.into(), MessageKind::Raise { name, data }).await
    }

    /// Raises an ephemeral event with a value: a text as it is, everything else as JSON.
    pub async fn raise_event_typed<T: Serialize>(
        &self,
        instance: impl Into<String>,
        event_name: impl Into<String>,
        data: &T,
    ) -> Result<(), ClientError> {
        let (instance, name) = (instance.into(), event_name.into());
        let data = to_text(&instance, format_args!("data of event {name:?}"), data)?;
        self.raise_event(instance, name, data).await
    }

    /// Puts a message into a durable queue of the instance.
    pub async fn enqueue_event(
        &self,
        instance: impl Into<String>,
        queue: impl Into<String>,
        data: impl Into<String>,
    ) -> Result<(), ClientError> {
        let (queue, data) = (queue.into(), data.into());
        self.options.limits.check_name("queue name", &queue)?;
        self.options.limits.check_payload("queue message", &data)?;
        self.send(instance.into(), MessageKind::Enqueue { queue, data }).await
    }

    /// The former name of [`Client::enqueue_event`].
    #[deprecated(note = "use enqueue_event")]
    pub async fn raise_event_persistent(
        &self,
        instance: impl Into<String>,
        event_name: impl Into<String>,
        data: impl Into<String>,
    ) -> Result<(), ClientError> {
        self.enqueue_event(instance, event_name, data).await
    }

    /// Puts a value into a durable queue of the instance: a text as it is, everything else as JSON.
    pub async fn enqueue_event_typed<T: Serialize>(
        &self,
        instance: impl Into<String>,
        queue: impl Into<String>,
        data: &T,
    ) -> Result<(), ClientError> {
        let (instance, queue) = (instance.into(), queue.into());
        let data = to_text(&instance, format_args!("message of queue {queue:?}"), data)?;
        self.enqueue_event(instance, queue, data).await
    }

    /// Cancels an instance with its children and activities. Does nothing when it has ended.
    pub async fn cancel_instance(
        &self,
        instance: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<(), ClientError> {
        let reason = reason.into();
        self.options.limits.check_payload("reason", &reason)?;
        self.send(instance.into(), MessageKind::Cancel { child: None, reason }).await
    }

    /// Ends an instance at once, like a cancel.
    pub async fn terminate_instance(
        &self,
        instance: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<(), ClientError> {
        self.cancel_instance(instance, reason).await
    }

    /// Stops the turns of an instance; messages and results wait durably.
    pub async fn pause_instance(&self, instance: impl Into<String>) -> Result<(), ClientError> {
        self.send(instance.into(), MessageKind::Pause).await
    }

    /// Lets the turns of a paused instance go on.
    pub async fn resume_instance(&self, instance: impl Into<String>) -> Result<(), ClientError> {
        self.send(instance.into(), MessageKind::Resume).await
    }

    async fn send(&self, instance: String, kind: MessageKind) -> Result<(), ClientError> {
        self.options.limits.check_name("instance id", &instance)?;
        let instance = InstanceId::from(instance);
        let message = Message { id: self.fresh_message_id(), kind };
        let queue_messages_max = self.options.limits.queue_messages_max;
        let send = |first_tried| {
            let options = SendOptions { queue_messages_max, first_tried };
            self.store.send(&instance, message.clone(), options)
        };
        self.insist_knowing(send).await.map(drop)
    }
}
