//! What orchestration code can do.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ids::mix;
use crate::journal::{Journal, NextExecution, OpKind, Outcome};
use crate::typed_values::TypedValue;
use crate::{
    ActivityTimeouts, DurableFuture, Either2, EventId, EventKind, LimitExceeded, LogLevel, RetryPolicy, Token,
    read_typed,
};

/// The hands of orchestration code: everything durable goes through it. Clones are the same context.
#[derive(Clone)]
pub struct OrchestrationContext {
    pub(crate) journal: Arc<Journal>,
}

/// The end of an execution: never resolves, unless the input was refused. Return it awaited.
#[must_use = "await it and return, so that nothing behind it runs"]
#[derive(Debug)]
pub struct ContinueAsNew {
    refused: Option<String>,
}

impl Future for ContinueAsNew {
    type Output = Result<String, String>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        self.refused.take().map_or(Poll::Pending, |refused| Poll::Ready(Err(refused)))
    }
}

/// An activity to be scheduled.
struct Request {
    name: String,
    input: String,
    session_id: Option<String>,
    attempt: u32,
    first_event: Option<EventId>,
}

impl OrchestrationContext {
    pub(crate) fn new(journal: Arc<Journal>) -> Self {
        Self { journal }
    }

    /// Runs an activity on any worker. Its error is returned as `Err`.
    pub fn schedule_activity(
        &self,
        name: impl Into<String>,
        input: impl Into<String>,
    ) -> DurableFuture<Result<String, String>> {
        self.schedule(Request::new(name, input))
    }

    /// [`OrchestrationContext::schedule_activity`] with typed input and result.
    pub fn schedule_activity_typed<In: Serialize, Out: DeserializeOwned + Send + 'static>(
        &self,
        name: impl Into<String>,
        input: &In,
    ) -> DurableFuture<Result<Out, String>> {
        self.schedule_typed(Request::new(name, ""), input)
    }

    /// Runs an activity on the worker that owns the session.
    pub fn schedule_activity_on_session(
        &self,
        name: impl Into<String>,
        input: impl Into<String>,
        session_id: impl Into<String>,
    ) -> DurableFuture<Result<String, String>> {
        self.schedule(Request { session_id: Some(session_id.into()), ..Request::new(name, input) })
    }

    /// [`OrchestrationContext::schedule_activity_on_session`] with typed input and result.
    pub fn schedule_activity_on_session_typed<In: Serialize, Out: DeserializeOwned + Send + 'static>(
        &self,
        name: impl Into<String>,
        input: &In,
        session_id: impl Into<String>,
    ) -> DurableFuture<Result<Out, String>> {
        self.schedule_typed(Request { session_id: Some(session_id.into()), ..Request::new(name, "") }, input)
    }

    /// Runs an activity until it succeeds, as often as the policy allows, with durable delays in between.
    pub async fn schedule_activity_with_retry(
        &self,
        name: impl Into<String>,
        input: impl Into<String>,
        policy: RetryPolicy,
    ) -> Result<String, String> {
        self.retry(Request::new(name, input), policy).await
    }

    /// [`OrchestrationContext::schedule_activity_with_retry`] with typed input and result.
    pub async fn schedule_activity_with_retry_typed<In: Serialize, Out: DeserializeOwned>(
        &self,
        name: impl Into<String>,
        input: &In,
        policy: RetryPolicy,
    ) -> Result<Out, String> {
        self.retry_typed(Request::new(name, ""), input, policy).await
    }

    /// [`OrchestrationContext::schedule_activity_with_retry`], every attempt on the session's worker.
    pub async fn schedule_activity_with_retry_on_session(
        &self,
        name: impl Into<String>,
        input: impl Into<String>,
        policy: RetryPolicy,
        session_id: impl Into<String>,
    ) -> Result<String, String> {
        self.retry(Request { session_id: Some(session_id.into()), ..Request::new(name, input) }, policy).await
    }

    /// [`OrchestrationContext::schedule_activity_with_retry_on_session`] with typed input and result.
    pub async fn schedule_activity_with_retry_on_session_typed<In: Serialize, Out: DeserializeOwned>(
        &self,
        name: impl Into<String>,
        input: &In,
        policy: RetryPolicy,
        session_id: impl Into<String>,
    ) -> Result<Out, String> {
        let request = Request { session_id: Some(session_id.into()), ..Request::new(name, "") };
        self.retry_typed(request, input, policy).await
    }

    /// Waits for `delay`, by the store's clock, through restarts. Never early. A delay beyond the year 9999
    /// ([`Millis::FAR`](crate::Millis::FAR)), like `Duration::MAX`, ends there.
    pub fn schedule_timer(&self, delay: Duration) -> DurableFuture<()> {
        let fire_at = self.journal.lock().now.plus(delay);
        let event = EventKind::TimerCreated { fire_at_ms: fire_at.0 };
        DurableFuture::open(&self.journal, event, OpKind::Timer { fire_at }, |_| ())
    }

    /// Waits for an ephemeral event. The nth wait for a name takes the nth event raised while somebody waits for it.
    pub fn schedule_wait(&self, name: impl Into<String>) -> DurableFuture<String> {
        let name = self.checked_name("event name", name.into());
        let event = EventKind::ExternalSubscribed { name: name.clone() };
        DurableFuture::open(&self.journal, event, OpKind::Wait { name }, Outcome::into_text)
    }

    /// [`OrchestrationContext::schedule_wait`] with a typed value.
    ///
    /// # Panics
    /// When the event is not JSON of this type; the orchestration fails with that message.
    pub fn schedule_wait_typed<T: DeserializeOwned + Send + 'static>(
        &self,
        name: impl Into<String>,
    ) -> DurableFuture<T> {
        let (ctx, name) = (self.clone(), name.into());
        let value = TypedValue::Event { name: name.clone() };
        self.schedule_wait(name).map(move |text| ctx.expect(&text, &value))
    }

    /// Takes the next message of a durable queue.
    pub fn dequeue_event(&self, queue: impl Into<String>) -> DurableFuture<String> {
        let queue = self.checked_name("queue name", queue.into());
        let event = EventKind::QueueSubscribed { name: queue.clone() };
        DurableFuture::open(&self.journal, event, OpKind::Dequeue { queue }, Outcome::into_text)
    }

    /// [`OrchestrationContext::dequeue_event`] with a typed value.
    ///
    /// # Panics
    /// When the message is not JSON of this type; the orchestration fails with that message.
    pub fn dequeue_event_typed<T: DeserializeOwned + Send + 'static>(
        &self,
        queue: impl Into<String>,
    ) -> DurableFuture<T> {
        let (ctx, queue) = (self.clone(), queue.into());
        let value = TypedValue::QueueMessage { queue: queue.clone() };
        self.dequeue_event(queue).map(move |text| ctx.expect(&text, &value))
    }

    /// The former name of [`OrchestrationContext::dequeue_event`].
    #[deprecated(note = "use dequeue_event")]
    pub fn schedule_wait_persistent(&self, name: impl Into<String>) -> DurableFuture<String> {
        self.dequeue_event(name)
    }

    /// The former name of [`OrchestrationContext::dequeue_event_typed`].
    #[deprecated(note = "use dequeue_event_typed")]
    pub fn schedule_wait_persistent_typed<T: DeserializeOwned + Send + 'static>(
        &self,
        name: impl Into<String>,
    ) -> DurableFuture<T> {
        self.dequeue_event_typed(name)
    }

    /// Ends this execution and begins the next with a new input and an empty history. The future never resolves.
    pub fn continue_as_new(&self, input: impl Into<String>) -> ContinueAsNew {
        self.next_execution(None, input.into())
    }

    /// [`OrchestrationContext::continue_as_new`] with a typed value.
    pub fn continue_as_new_typed<In: Serialize>(&self, input: &In) -> ContinueAsNew {
        let value = || TypedValue::OrchestrationInput { orchestration: self.orchestration_name() };
        let input = self.write(input, value).unwrap_or_else(|error| panic!("continue_as_new_typed: {error}"));
        self.next_execution(None, input)
    }

    /// [`OrchestrationContext::continue_as_new`] on an exact version.
    pub fn continue_as_new_versioned(&self, version: impl Into<String>, input: impl Into<String>) -> ContinueAsNew {
        let version = version.into();
        if let Err(error) = semver::Version::parse(&version) {
            panic!("continue_as_new_versioned: version {version:?} is not a semantic version: {error}");
        }
        self.next_execution(Some(version), input.into())
    }

    /// An id that is random to the world and the same at every replay, in the form of a version 4 UUID (RFC 9562).
    pub async fn new_guid(&self) -> Result<String, String> {
        let mut state = self.journal.lock();
        state.guids += 1;
        let base = state.told().seed ^ mix(state.guids);
        let bits = (u128::from(mix(base)) << 64) | u128::from(mix(base ^ 0x5bf0_3635));
        Ok(uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid().to_string())
    }

    /// The store's time of the turn that runs; the same at every replay.
    pub async fn utc_now(&self) -> Result<SystemTime, String> {
        Ok(SystemTime::UNIX_EPOCH + Duration::from_millis(self.journal.lock().now.0))
    }

    /// Publishes progress to clients; survives continue-as-new.
    pub fn set_custom_status(&self, status: impl Into<String>) {
        let status = status.into();
        let max = self.journal.lock().limits.custom_status_bytes_max;
        if status.len() > max {
            self.refuse(LimitExceeded::Text {
                what: "custom status",
                bytes: status.len(),
                max,
                limit: "custom_status_bytes_max",
            });
            return;
        }
        self.update_status(Some(status));
    }

    /// Clears the custom status.
    pub fn reset_custom_status(&self) {
        self.update_status(None);
    }

    /// The custom status as last set.
    pub fn get_custom_status(&self) -> Option<String> {
        self.journal.lock().custom_status.clone()
    }

    /// Logs, but not while replaying.
    pub fn trace(&self, level: impl Into<LogLevel>, message: impl Into<String>) {
        // Before the lock: conversions of the code's own types may use the context.
        let (level, message) = (level.into(), message.into());
        self.journal.lock().log(level, message);
    }

    /// Logs at info level, but not while replaying.
    pub fn trace_info(&self, message: impl Into<String>) {
        self.trace(LogLevel::Info, message);
    }

    /// Logs at warn level, but not while replaying.
    pub fn trace_warn(&self, message: impl Into<String>) {
        self.trace(LogLevel::Warn, message);
    }

    /// Logs at error level, but not while replaying.
    pub fn trace_error(&self, message: impl Into<String>) {
        self.trace(LogLevel::Error, message);
    }

    /// Logs at debug level, but not while replaying.
    pub fn trace_debug(&self, message: impl Into<String>) {
        self.trace(LogLevel::Debug, message);
    }

    /// Whether log lines are written now: not while replaying.
    pub fn is_logging_enabled(&self) -> bool {
        !self.is_replaying()
    }

    /// Whether the code is following its history. Decisions must not depend on it.
    pub fn is_replaying(&self) -> bool {
        self.journal.lock().replaying
    }

    /// The id of this instance.
    pub fn instance_id(&self) -> String {
        self.journal.lock().told().instance.to_owned()
    }

    /// The number of this execution, from 1.
    pub fn execution_id(&self) -> u64 {
        self.journal.lock().told().execution.0
    }

    /// The name of this orchestration.
    pub fn orchestration_name(&self) -> String {
        self.journal.lock().identity.orchestration.clone()
    }

    /// The version that this execution runs.
    pub fn orchestration_version(&self) -> String {
        self.journal.lock().identity.version.clone()
    }

    fn schedule(&self, request: Request) -> DurableFuture<Result<String, String>> {
        let token = {
            let state = self.journal.lock();
            let limits = &state.limits;
            let checked = limits
                .check_name("activity name", &request.name)
                .and_then(|()| limits.check_payload("activity input", &request.input))
                .and_then(|()| request.session_id.as_deref().map_or(Ok(()), |id| limits.check_name("session id", id)));
            if let Err(refused) = checked {
                drop(state);
                return DurableFuture::settled(&self.journal, Err(refused.to_string()));
            }
            if request.name == crate::KV_READ_ACTIVITY {
                drop(state);
                let refused = format!("activity name {:?} is reserved: use get_kv_value_from_instance", request.name);
                return DurableFuture::settled(&self.journal, Err(refused));
            }
            Token::derive(state.turn_seed, state.next_event)
        };
        let event = EventKind::ActivityScheduled {
            name: request.name,
            input: request.input,
            session_id: request.session_id,
            tag: None,
            token,
            attempt: request.attempt,
            first_event_id: request.first_event.map(|id| id.0),
            timeouts: ActivityTimeouts::default(),
        };
        DurableFuture::open(&self.journal, event, OpKind::Activity { token }, Outcome::into_result)
    }

    fn schedule_typed<In: Serialize, Out: DeserializeOwned + Send + 'static>(
        &self,
        request: Request,
        input: &In,
    ) -> DurableFuture<Result<Out, String>> {
        let value = TypedValue::ActivityResult { activity: request.name.clone() };
        let scheduled = match self.write(input, || request.input_value()) {
            Ok(input) => self.schedule(Request { input, ..request }),
            Err(error) => DurableFuture::settled(&self.journal, Err(error)),
        };
        scheduled.map(self.reader(value))
    }

    async fn retry_typed<In: Serialize, Out: DeserializeOwned>(
        &self,
        request: Request,
        input: &In,
        policy: RetryPolicy,
    ) -> Result<Out, String> {
        let input = self.write(input, || request.input_value())?;
        let value = TypedValue::ActivityResult { activity: request.name.clone() };
        self.read(&self.retry(Request { input, ..request }, policy).await?, &value)
    }

    async fn retry(&self, request: Request, policy: RetryPolicy) -> Result<String, String> {
        let Some(total) = policy.total_timeout else { return self.attempts(request, policy).await };
        let deadline = self.schedule_timer(total);
        let attempts = std::pin::pin!(self.attempts(request, policy));
        match self.select2(attempts, deadline).await {
            Either2::First(result) => result,
            Either2::Second(()) => Err("timeout: all attempts together took too long".to_owned()),
        }
    }

    async fn attempts(&self, request: Request, policy: RetryPolicy) -> Result<String, String> {
        let mut attempt = 1;
        let first = self.journal.lock().next_event;
        let _trying = Trying::begin(&self.journal, first);
        loop {
            let first_event = (attempt > 1).then_some(first);
            let again = Request { attempt, first_event, ..request.copy() };
            let activity = self.schedule(again);
            let result = match policy.timeout {
                None => activity.await,
                Some(timeout) => match self.select2(activity, self.schedule_timer(timeout)).await {
                    Either2::First(result) => result,
                    Either2::Second(()) => return Err("timeout: activity timed out".to_owned()),
                },
            };
            let error = match result {
                Ok(output) => return Ok(output),
                Err(error) if attempt >= policy.max_attempts => return Err(error),
                Err(error) => error,
            };
            let delay = policy.delay_for_attempt(attempt);
            let when = if delay.is_zero() { "at once".to_owned() } else { format!("in {delay:?}") };
            self.trace_warn(format!(
                "activity {} failed in attempt {attempt} of {}, next {when}: {error}",
                request.name, policy.max_attempts
            ));
            if !delay.is_zero() {
                self.schedule_timer(delay).await;
            }
            attempt += 1;
        }
    }

    fn next_execution(&self, version: Option<String>, input: String) -> ContinueAsNew {
        let mut state = self.journal.lock();
        let refused = state.limits.check_payload("continue-as-new input", &input).err();
        if refused.is_none() {
            state.next_execution.get_or_insert(NextExecution { version, input });
        }
        ContinueAsNew { refused: refused.map(|refused| refused.to_string()) }
    }

    fn update_status(&self, status: Option<String>) {
        self.journal.emit(None, EventKind::CustomStatusUpdated { status: status.clone() });
        let mut state = self.journal.lock();
        state.custom_status = status;
        state.custom_status_version += 1;
    }

    fn checked_name(&self, what: &'static str, name: String) -> String {
        let checked = self.journal.lock().limits.check_name(what, &name);
        if let Err(refused) = checked {
            panic!("{refused}");
        }
        name
    }

    /// Breaking a limit of state ends the instance with this error once the code waits again.
    pub(crate) fn refuse(&self, refused: impl std::fmt::Display) {
        let details = crate::ErrorDetails::application(crate::AppErrorKind::OrchestrationFailed, refused.to_string());
        self.journal.lock().fault.get_or_insert(details);
    }

    /// Writes a value of a typed call by the rules of this execution.
    pub(crate) fn write<T: Serialize>(&self, value: &T, what: impl FnOnce() -> TypedValue) -> Result<String, String> {
        let rules = self.journal.lock().identity.rules;
        // Without the lock: a value's own code may use the context.
        rules.write(value).map_err(|error| rules.unwritten(&what(), &self.instance_id(), &error))
    }

    /// Reads a value of a typed call; an error by the rules of this execution.
    pub(crate) fn read<T: DeserializeOwned>(&self, text: &str, what: &TypedValue) -> Result<T, String> {
        read_typed(text).map_err(|error| {
            let state = self.journal.lock();
            state.identity.rules.unread(what, state.told().instance, &error)
        })
    }

    /// [`OrchestrationContext::read`] for the result of a typed call.
    pub(crate) fn reader<T: DeserializeOwned>(
        &self,
        what: TypedValue,
    ) -> impl FnOnce(Result<String, String>) -> Result<T, String> + Send + use<T> {
        let ctx = self.clone();
        move |result| ctx.read(&result?, &what)
    }

    fn expect<T: DeserializeOwned>(&self, text: &str, what: &TypedValue) -> T {
        self.read(text, what).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Says that a retry policy tries an activity, until it is dropped.
struct Trying {
    journal: Arc<Journal>,
    first: EventId,
}

impl Trying {
    fn begin(journal: &Arc<Journal>, first: EventId) -> Self {
        journal.lock().retried.insert(first);
        Self { journal: Arc::clone(journal), first }
    }
}

impl Drop for Trying {
    fn drop(&mut self) {
        self.journal.lock().retried.remove(&self.first);
    }
}

impl Request {
    fn new(name: impl Into<String>, input: impl Into<String>) -> Self {
        Self { name: name.into(), input: input.into(), session_id: None, attempt: 1, first_event: None }
    }

    fn input_value(&self) -> TypedValue {
        TypedValue::ActivityInput { activity: self.name.clone() }
    }

    fn copy(&self) -> Self {
        Self {
            name: self.name.clone(),
            input: self.input.clone(),
            session_id: self.session_id.clone(),
            attempt: self.attempt,
            first_event: self.first_event,
        }
    }
}
