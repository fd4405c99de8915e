//! The client itself, and starting.

use std::future::Future;
use std::sync::Arc;

use outlast_broker::Broker;
use outlast_core::{InstanceId, Message, MessageId, MessageKind, Millis, StartMessage, write_typed};
use outlast_storage::{Error, StartConflict, StartOutcome, StartRequest, Store};
use serde::Serialize;

use crate::insist::insist_for;
use crate::just_started::{JustStarted, Started};
use crate::surroundings::Surroundings;
use crate::{ClientError, ClientOptions, Provider, StartOptions};

/// Controls instances through the store; clones share everything.
#[derive(Clone)]
pub struct Client {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) options: Arc<ClientOptions>,
    pub(crate) just_started: Arc<JustStarted>,
    pub(crate) surroundings: Surroundings,
}

impl Client {
    /// A client with default options.
    pub fn new<P: Provider + ?Sized>(provider: Arc<P>) -> Self {
        Self::with_options(provider, ClientOptions::default())
    }

    /// A client with options.
    pub fn with_options<P: Provider + ?Sized>(provider: Arc<P>, options: ClientOptions) -> Self {
        let (options, just_started) = (Arc::new(options), Arc::default());
        let (store, broker, surroundings) = (provider.store(), provider.broker(), provider.surroundings());
        Self { store, broker, options, just_started, surroundings }
    }

    /// Starts an instance; when this returns, the start is durable. An existing instance of the same orchestration is left as it
    /// is; if it was started with another input, a warning is logged, and `start_with` says so.
    pub async fn start_orchestration(
        &self,
        instance: impl Into<String>,
        orchestration: impl Into<String>,
        input: impl Into<String>,
    ) -> Result<(), ClientError> {
        let options = StartOptions {
            instance: instance.into(),
            orchestration: orchestration.into(),
            input: input.into(),
            ..StartOptions::default()
        };
        self.start_with(options).await.map(drop)
    }

    /// Starts an instance on an exact version.
    pub async fn start_orchestration_versioned(
        &self,
        instance: impl Into<String>,
        orchestration: impl Into<String>,
        version: impl Into<String>,
        input: impl Into<String>,
    ) -> Result<(), ClientError> {
        let options = StartOptions {
            instance: instance.into(),
            orchestration: orchestration.into(),
            version: Some(version.into()),
            input: input.into(),
            ..StartOptions::default()
        };
        self.start_with(options).await.map(drop)
    }

    /// Starts an instance with a typed input, given by value or by reference: a text as it is, everything else as JSON.
    pub async fn start_orchestration_typed<In: Serialize>(
        &self,
        instance: impl Into<String>,
        orchestration: impl Into<String>,
        input: In,
    ) -> Result<(), ClientError> {
        let (instance, orchestration) = (instance.into(), orchestration.into());
        let input = to_text(&instance, format_args!("input of orchestration {orchestration:?}"), &input)?;
        self.start_orchestration(instance, orchestration, input).await
    }

    /// [`Client::start_orchestration_typed`] on an exact version.
    pub async fn start_orchestration_versioned_typed<In: Serialize>(
        &self,
        instance: impl Into<String>,
        orchestration: impl Into<String>,
        version: impl Into<String>,
        input: In,
    ) -> Result<(), ClientError> {
        let (instance, orchestration) = (instance.into(), orchestration.into());
        let input = to_text(&instance, format_args!("input of orchestration {orchestration:?}"), &input)?;
        self.start_orchestration_versioned(instance, orchestration, version, input).await
    }

    /// Starts an instance and says whether it is new, and whether an existing one was started with another input.
    pub async fn start_with(&self, start: StartOptions) -> Result<StartOutcome, ClientError> {
        #[cfg(feature = "telemetry")]
        {
            let mut start = start;
            let span = crate::trace::StartSpan::begin(&mut start);
            let result = self.start(start).await;
            span.end(&result);
            result
        }
        #[cfg(not(feature = "telemetry"))]
        self.start(start).await
    }

    async fn start(&self, start: StartOptions) -> Result<StartOutcome, ClientError> {
        let limits = &self.options.limits;
        limits.check_instance(&start.instance)?;
        limits.check_name("orchestration name", &start.orchestration)?;
        limits.check_payload("orchestration input", &start.input)?;
        if let Some(version) = &start.version
            && let Err(error) = semver::Version::parse(version)
        {
            return Err(ClientError::invalid(format!(
                "version {version:?} is not a semantic version like 1.2.3: {error}"
            )));
        }
        let instance = InstanceId::new(&start.instance);
        let kind = MessageKind::Start(StartMessage {
            name: start.orchestration,
            version: start.version,
            input: start.input,
            parent: None,
            traceparent: start.traceparent,
        });
        let message = Message { id: self.fresh_message_id(), kind };
        let on_conflict: StartConflict = start.on_conflict;
        let request = StartRequest { instance: instance.clone(), message, on_conflict };
        // Subscribes before the start, so that a wait that follows has missed nothing and need not look.
        let updates = self.broker.watch(&instance);
        let receipt = self.insist(|| self.store.start(request.clone())).await?;
        match receipt.seq {
            Some(_) => self.just_started.note(instance, Started { by: request.message.id, updates }),
            None => {
                // Kept updates may be of a life of the id that this start has ended.
                self.just_started.take(&instance);
                if receipt.outcome == StartOutcome::AlreadyExists && self.has_other_input(&request).await {
                    return Ok(StartOutcome::AlreadyExistsWithOtherInput);
                }
            }
        }
        Ok(receipt.outcome)
    }

    /// An id that no other message of the instance has.
    pub(crate) fn fresh_message_id(&self) -> MessageId {
        // 96 random bits: unique among the messages of one instance is enough, and the id is stored with each of them.
        let bits = || self.surroundings.random_bits();
        MessageId::new(format!("{:016x}{:08x}", bits(), bits() >> 32))
    }

    /// Repeats a call while the store is away, up to `call_timeout`. The message keeps its id, so nothing happens twice.
    pub(crate) async fn insist<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, ClientError> {
        self.insist_knowing(|_| call()).await
    }

    /// Like `insist`, but tells a repeat when the call was first made.
    pub(crate) async fn insist_knowing<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: impl Fn(Option<Millis>) -> F,
    ) -> Result<T, ClientError> {
        insist_for(&*self.store, self.options.call_timeout, call).await.map_err(ClientError::from)
    }
}

pub(crate) fn to_text<T: Serialize>(
    instance: &str,
    what: impl std::fmt::Display,
    value: &T,
) -> Result<String, ClientError> {
    let unwritten = |error| format!("instance {instance:?}: the {what} cannot be written as JSON: {error}");
    write_typed(value).map_err(|error| ClientError::invalid(unwritten(error)))
}
