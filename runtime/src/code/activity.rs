//! The activities that a worker can run.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use outlast_core::{
    ActivityTimeouts, Registry, RegistryBuilder, RegistryErrors, VersionPolicy, read_typed, write_typed,
};
use semver::Version;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ActivityContext;

/// An activity function, type-erased.
pub type ActivityHandler =
    Arc<dyn Fn(ActivityContext, String) -> Pin<Box<dyn Future<Output = Result<String, String>> + Send>> + Send + Sync>;

/// The registered activities; cheap to clone. Clones are the same registry.
#[derive(Clone, Default)]
pub struct ActivityRegistry {
    handlers: Registry<ActivityHandler>,
    timeouts: Arc<BTreeMap<String, ActivityTimeouts>>,
}

/// Collects activities for a registry.
pub struct ActivityRegistryBuilder {
    builder: RegistryBuilder<ActivityHandler>,
    timeouts: BTreeMap<String, ActivityTimeouts>,
}

/// The version of an activity that is registered without one.
const VERSION: &str = "1.0.0";

impl ActivityRegistry {
    /// Begins an empty registry.
    pub fn builder() -> ActivityRegistryBuilder {
        ActivityRegistryBuilder { builder: Registry::builder(), timeouts: BTreeMap::new() }
    }

    /// Begins with all that `registry` has.
    pub fn builder_from(registry: &Self) -> ActivityRegistryBuilder {
        let timeouts = (*registry.timeouts).clone();
        ActivityRegistryBuilder { builder: Registry::builder_from(&registry.handlers), timeouts }
    }

    /// The handler that a name stands for, with its version: the latest, or the one that its policy names.
    pub fn resolve_handler(&self, name: &str) -> Option<(Version, ActivityHandler)> {
        self.handlers.resolve_handler(name)
    }

    /// The version that a name stands for.
    pub fn resolve_version(&self, name: &str) -> Option<Version> {
        self.handlers.resolve_version(name)
    }

    /// The handler of exactly this version.
    pub fn resolve_handler_exact(&self, name: &str, version: &Version) -> Option<ActivityHandler> {
        self.handlers.resolve_handler_exact(name, version)
    }

    /// Sets which version a name stands for from now on, in this registry and all clones, so also in running workers.
    pub fn set_version_policy(&self, name: &str, policy: VersionPolicy) {
        self.handlers.set_version_policy(name, policy);
    }

    /// Deadlines for calls that name none.
    pub(crate) fn timeouts(&self, name: &str) -> ActivityTimeouts {
        self.timeouts.get(name).copied().unwrap_or_default()
    }

    /// All versions of a name, oldest first.
    pub fn list_versions(&self, name: &str) -> Vec<Version> {
        self.handlers.list_versions(name)
    }

    /// All names, sorted.
    pub fn list_names(&self) -> Vec<String> {
        self.handlers.list_names()
    }

    /// Whether the name is registered.
    pub fn has(&self, name: &str) -> bool {
        self.handlers.has(name)
    }

    /// How many activities there are.
    pub fn count(&self) -> usize {
        self.handlers.count()
    }
}

impl ActivityRegistryBuilder {
    /// Begins with all that `registry` has; the same as [`ActivityRegistry::builder_from`].
    pub fn from_registry(registry: &ActivityRegistry) -> Self {
        ActivityRegistry::builder_from(registry)
    }

    /// Adds an activity.
    #[must_use]
    pub fn register<F, Fut>(self, name: impl Into<String>, activity: F) -> Self
    where
        F: Fn(ActivityContext, String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, String>> + Send + 'static,
    {
        self.register_versioned(name, VERSION, activity)
    }

    /// Adds a version of an activity. Orchestrations name no version: a worker runs its latest one, or what the policy says.
    #[must_use]
    pub fn register_versioned<F, Fut>(self, name: impl Into<String>, version: impl AsRef<str>, activity: F) -> Self
    where
        F: Fn(ActivityContext, String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, String>> + Send + 'static,
    {
        let handler: ActivityHandler = Arc::new(move |ctx, input| Box::pin(activity(ctx, input)));
        Self { builder: self.builder.insert(name.into(), version.as_ref(), handler), ..self }
    }

    /// Deadlines of an activity on this worker, for calls that name none. `schedule_to_start` has no effect here: it ends before
    /// a worker is known, so only calls can set it.
    #[must_use]
    pub fn set_timeouts(mut self, name: impl Into<String>, timeouts: ActivityTimeouts) -> Self {
        self.timeouts.insert(name.into(), timeouts);
        self
    }

    /// Which version a name stands for.
    #[must_use]
    pub fn set_policy(self, name: impl Into<String>, policy: VersionPolicy) -> Self {
        Self { builder: self.builder.set_policy(name, policy), ..self }
    }

    /// Adds an activity with typed input and output: texts as they are, everything else as JSON.
    #[must_use]
    pub fn register_typed<In, Out, F, Fut>(self, name: impl Into<String>, activity: F) -> Self
    where
        In: DeserializeOwned + Send + 'static,
        Out: Serialize + Send + 'static,
        F: Fn(ActivityContext, In) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Out, String>> + Send + 'static,
    {
        self.register_versioned_typed(name, VERSION, activity)
    }

    /// [`ActivityRegistryBuilder::register_typed`] for a version of an activity.
    #[must_use]
    pub fn register_versioned_typed<In, Out, F, Fut>(
        self,
        name: impl Into<String>,
        version: impl AsRef<str>,
        activity: F,
    ) -> Self
    where
        In: DeserializeOwned + Send + 'static,
        Out: Serialize + Send + 'static,
        F: Fn(ActivityContext, In) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Out, String>> + Send + 'static,
    {
        let handler: ActivityHandler = Arc::new(move |ctx, input| match read_typed::<In>(&input) {
            Ok(input) => {
                let whose = whose("result", &ctx);
                let running = activity(ctx, input);
                Box::pin(async move {
                    let output = running.await?;
                    write_typed(&output).map_err(|error| format!("{whose} cannot be written as JSON: {error}"))
                })
            }
            Err(error) => {
                let refused = format!("{} is not the expected JSON: {error}", whose("input", &ctx));
                Box::pin(std::future::ready(Err(refused)))
            }
        });
        Self { builder: self.builder.insert(name.into(), version.as_ref(), handler), ..self }
    }

    /// Adds several activities of one type.
    #[must_use]
    pub fn register_all<N, F, Fut>(self, activities: impl IntoIterator<Item = (N, F)>) -> Self
    where
        N: Into<String>,
        F: Fn(ActivityContext, String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, String>> + Send + 'static,
    {
        activities.into_iter().fold(self, |builder, (name, activity)| builder.register(name, activity))
    }

    /// Adds all activities of another registry.
    #[must_use]
    pub fn merge(mut self, other: ActivityRegistry) -> Self {
        self.timeouts.extend(other.timeouts.iter().map(|(name, timeouts)| (name.clone(), *timeouts)));
        Self { builder: self.builder.merge(other.handlers), timeouts: self.timeouts }
    }

    /// The registry. Panics when a registration was wrong, with all errors.
    pub fn build(self) -> ActivityRegistry {
        ActivityRegistry { handlers: self.builder.build(), timeouts: Arc::new(self.timeouts) }
    }

    /// The registry, or all that was wrong with the registrations.
    pub fn build_result(self) -> Result<ActivityRegistry, RegistryErrors> {
        Ok(ActivityRegistry { handlers: self.builder.build_result()?, timeouts: Arc::new(self.timeouts) })
    }
}

/// Names a value in an error message.
fn whose(value: &str, ctx: &ActivityContext) -> String {
    format!("instance {:?}: the {value} of activity {:?}", ctx.instance_id(), ctx.activity_name())
}
