//! Other orchestrations that code starts: children, whose outcome it awaits, and detached ones.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::journal::Outcome;
use crate::journal::{JournalState, OpKind};
use crate::typed_values::TypedValue;
use crate::{DurableFuture, EventKind, InstanceId, OrchestrationContext, Token};

/// What generated ids of children begin with, after their parent's id.
pub const SUB_ORCH_AUTO_PREFIX: &str = "sub::";

/// Whether a child's id, without its parent's, is one that was not chosen.
pub fn is_auto_generated_sub_orch_id(instance: &str) -> bool {
    instance.starts_with(SUB_ORCH_AUTO_PREFIX)
}

/// The full id of a child: a generated id is appended to the parent's, a chosen one stands on its own.
pub fn build_child_instance_id(parent_instance: &str, child_instance: &str) -> String {
    if is_auto_generated_sub_orch_id(child_instance) {
        format!("{parent_instance}::{child_instance}")
    } else {
        child_instance.to_owned()
    }
}

/// A child to be started.
struct Child {
    name: String,
    version: Option<String>,
    instance: Option<String>,
    input: String,
}

impl OrchestrationContext {
    /// Runs a child orchestration; its id is made from this instance's id and the scheduling event.
    pub fn schedule_sub_orchestration(
        &self,
        name: impl Into<String>,
        input: impl Into<String>,
    ) -> DurableFuture<Result<String, String>> {
        self.child(Child { name: name.into(), version: None, instance: None, input: input.into() })
    }

    /// [`OrchestrationContext::schedule_sub_orchestration`] with typed input and result.
    pub fn schedule_sub_orchestration_typed<In: Serialize, Out: DeserializeOwned + Send + 'static>(
        &self,
        name: impl Into<String>,
        input: &In,
    ) -> DurableFuture<Result<Out, String>> {
        self.child_typed(Child { name: name.into(), version: None, instance: None, input: String::new() }, input)
    }

    /// Runs a child under an id of your choice. An id that is taken gives `Err`.
    pub fn schedule_sub_orchestration_with_id(
        &self,
        name: impl Into<String>,
        instance: impl Into<String>,
        input: impl Into<String>,
    ) -> DurableFuture<Result<String, String>> {
        self.child(Child { name: name.into(), version: None, instance: Some(instance.into()), input: input.into() })
    }

    /// [`OrchestrationContext::schedule_sub_orchestration_with_id`] with typed input and result.
    pub fn schedule_sub_orchestration_with_id_typed<In: Serialize, Out: DeserializeOwned + Send + 'static>(
        &self,
        name: impl Into<String>,
        instance: impl Into<String>,
        input: &In,
    ) -> DurableFuture<Result<Out, String>> {
        let instance = Some(instance.into());
        self.child_typed(Child { name: name.into(), version: None, instance, input: String::new() }, input)
    }

    /// Runs a child on an exact version; `None` lets the registry's policy choose.
    pub fn schedule_sub_orchestration_versioned(
        &self,
        name: impl Into<String>,
        version: Option<String>,
        input: impl Into<String>,
    ) -> DurableFuture<Result<String, String>> {
        self.child(Child { name: name.into(), version, instance: None, input: input.into() })
    }

    /// Runs a child on an exact version under an id of your choice.
    pub fn schedule_sub_orchestration_versioned_with_id(
        &self,
        name: impl Into<String>,
        version: Option<String>,
        instance: impl Into<String>,
        input: impl Into<String>,
    ) -> DurableFuture<Result<String, String>> {
        self.child(Child { name: name.into(), version, instance: Some(instance.into()), input: input.into() })
    }

    /// Starts an orchestration that lives on its own. An id that is taken is left as it is.
    pub fn schedule_orchestration(
        &self,
        name: impl Into<String>,
        instance: impl Into<String>,
        input: impl Into<String>,
    ) {
        self.detached(
            None,
            Child { name: name.into(), version: None, instance: Some(instance.into()), input: input.into() },
        );
    }

    /// [`OrchestrationContext::schedule_orchestration`] with a typed value.
    pub fn schedule_orchestration_typed<In: Serialize>(
        &self,
        name: impl Into<String>,
        instance: impl Into<String>,
        input: &In,
    ) {
        let name = name.into();
        match self.write(input, || TypedValue::OrchestrationInput { orchestration: name.clone() }) {
            Ok(input) => self.schedule_orchestration(name, instance, input),
            Err(error) => self.refuse(error),
        }
    }

    /// [`OrchestrationContext::schedule_orchestration`] on an exact version.
    pub fn schedule_orchestration_versioned(
        &self,
        name: impl Into<String>,
        version: Option<String>,
        instance: impl Into<String>,
        input: impl Into<String>,
    ) {
        self.detached(
            version,
            Child { name: name.into(), version: None, instance: Some(instance.into()), input: input.into() },
        );
    }

    /// [`OrchestrationContext::schedule_orchestration_versioned`] with a typed value.
    pub fn schedule_orchestration_versioned_typed<In: Serialize>(
        &self,
        name: impl Into<String>,
        version: Option<String>,
        instance: impl Into<String>,
        input: &In,
    ) {
        let name = name.into();
        match self.write(input, || TypedValue::OrchestrationInput { orchestration: name.clone() }) {
            Ok(input) => self.schedule_orchestration_versioned(name, version, instance, input),
            Err(error) => self.refuse(error),
        }
    }

    fn child_typed<In: Serialize, Out: DeserializeOwned + Send + 'static>(
        &self,
        child: Child,
        input: &In,
    ) -> DurableFuture<Result<Out, String>> {
        let orchestration = child.name.clone();
        let scheduled = match self.write(input, || TypedValue::OrchestrationInput { orchestration: child.name.clone() })
        {
            Ok(input) => self.child(Child { input, ..child }),
            Err(error) => DurableFuture::settled(&self.journal, Err(error)),
        };
        scheduled.map(self.reader(TypedValue::OrchestrationResult { orchestration }))
    }

    fn child(&self, child: Child) -> DurableFuture<Result<String, String>> {
        let (instance, token) = {
            let state = self.journal.lock();
            let (own, id) = (state.told(), state.next_event);
            let checked = check_child(&state, &child).and_then(|()| {
                if let Some(chosen) = &child.instance {
                    return Ok(chosen.clone());
                }
                let made = match own.execution.0 {
                    1 => format!("{}::sub::{id}", own.instance),
                    execution => format!("{}::sub::{execution}_{id}", own.instance),
                };
                state
                    .identity
                    .rules
                    .check_child_id(&state.limits, &made)
                    .map(|()| made)
                    .map_err(|refused| refused.to_string())
            });
            let instance = match checked {
                Ok(instance) => instance,
                Err(refused) => {
                    drop(state);
                    return DurableFuture::settled(&self.journal, Err(refused));
                }
            };
            (instance, Token::derive(state.turn_seed, id))
        };
        let op = OpKind::Child { instance: InstanceId::new(&instance), token };
        let event = EventKind::SubOrchestrationScheduled {
            name: child.name,
            instance,
            input: child.input,
            version: child.version,
            token,
        };
        DurableFuture::open(&self.journal, event, op, Outcome::into_result)
    }

    fn detached(&self, version: Option<String>, child: Child) {
        let child = Child { version, ..child };
        let checked = check_child(&self.journal.lock(), &child);
        if let Err(refused) = checked {
            return self.refuse(refused);
        }
        let event = EventKind::OrchestrationChained {
            name: child.name,
            instance: child.instance.unwrap_or_default(),
            input: child.input,
            version: child.version,
        };
        self.journal.emit(None, event);
    }
}

fn check_child(state: &JournalState, child: &Child) -> Result<(), String> {
    let (limits, rules, own) = (&state.limits, state.identity.rules, state.told().instance);
    limits
        .check_name("orchestration name", &child.name)
        .and_then(|()| limits.check_payload("orchestration input", &child.input))
        .and_then(|()| child.instance.as_deref().map_or(Ok(()), |id| rules.check_chosen_id(limits, own, id)))
        .map_err(|refused| refused.to_string())?;
    match child.version.as_deref().map(semver::Version::parse) {
        Some(Err(error)) => Err(format!("version {:?} is not a semantic version: {error}", child.version)),
        Some(Ok(_)) | None => Ok(()),
    }
}
