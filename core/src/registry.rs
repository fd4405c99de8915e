//! Handlers by name and version.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};

use semver::Version;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::OrchestrationContext;
use crate::typed_values::TypedValue;

/// The running code of an execution.
pub(crate) type OrchestrationFuture = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// An orchestration function, type-erased.
pub type OrchestrationHandler = Arc<
    dyn Fn(OrchestrationContext, String) -> Pin<Box<dyn Future<Output = Result<String, String>> + Send>> + Send + Sync,
>;

/// The same by another name that programs know.
pub type OrchestrationHandlerRef = OrchestrationHandler;

/// The registered orchestrations.
pub type OrchestrationRegistry = Registry<OrchestrationHandler>;

/// Collects orchestrations for a registry.
pub type OrchestrationRegistryBuilder = RegistryBuilder<OrchestrationHandler>;

/// The version of what is registered without one.
const DEFAULT_VERSION: Version = Version::new(1, 0, 0);

/// Which version a start without one gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VersionPolicy {
    /// The highest.
    #[default]
    Latest,
    /// This one.
    Exact(Version),
}

/// What is wrong with a registration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RegistryError {
    /// The name and version are taken.
    #[error("{name} {version} is registered twice: give one of them another name or version")]
    Duplicate {
        /// The name.
        name: String,
        /// The version.
        version: Version,
    },
    /// Not a semantic version.
    #[error("version {version:?} of {name} is not a semantic version: {reason}")]
    BadVersion {
        /// The name.
        name: String,
        /// What was given.
        version: String,
        /// Why it is none.
        reason: String,
    },
    /// The name is empty.
    #[error("a handler needs a name")]
    NoName,
    /// A policy that no registration can serve.
    #[error(
        "the policy of {name} chooses {policy:?}, and no such version is registered: register it, or drop the policy"
    )]
    BadPolicy {
        /// The name.
        name: String,
        /// The policy.
        policy: VersionPolicy,
    },
}

/// All that was wrong with the registrations of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryErrors(Vec<RegistryError>);

impl fmt::Display for RegistryErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        write!(f, "the registry has {} errors: {}", lines.len(), lines.join("; "))
    }
}

impl std::error::Error for RegistryErrors {}

impl Deref for RegistryErrors {
    type Target = [RegistryError];

    fn deref(&self) -> &[RegistryError] {
        &self.0
    }
}

impl IntoIterator for RegistryErrors {
    type Item = RegistryError;
    type IntoIter = std::vec::IntoIter<RegistryError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Where a turn finds the code to run.
pub trait Handlers: Send + Sync {
    /// The handler of an exact version, or of the version that the policy chooses; with its version.
    fn resolve(&self, name: &str, version: Option<&str>) -> Option<(String, OrchestrationHandler)>;
}

/// Handlers by name and version; cheap to clone. Clones are the same registry: the handlers never change, the policies may.
#[derive(Clone)]
pub struct Registry<H> {
    entries: Arc<BTreeMap<String, Versions<H>>>,
    policies: Arc<RwLock<Policies>>,
}

/// The handlers of one name.
type Versions<H> = BTreeMap<Version, H>;

/// Names whose starts do not get the highest version.
type Policies = BTreeMap<String, VersionPolicy>;

impl<H> Default for Registry<H> {
    fn default() -> Self {
        Self { entries: Arc::default(), policies: Arc::default() }
    }
}

impl<H: Clone> Registry<H> {
    /// Begins an empty registry.
    pub fn builder() -> RegistryBuilder<H> {
        RegistryBuilder { entries: BTreeMap::new(), policies: Policies::new(), errors: Vec::new() }
    }

    /// Begins with all that `registry` has.
    pub fn builder_from(registry: &Self) -> RegistryBuilder<H> {
        RegistryBuilder { entries: (*registry.entries).clone(), policies: registry.policies(), errors: Vec::new() }
    }

    /// The handler that the policy chooses, with its version.
    pub fn resolve_handler(&self, name: &str) -> Option<(Version, H)> {
        self.find(name, None)
    }

    /// The version that the policy chooses.
    pub fn resolve_version(&self, name: &str) -> Option<Version> {
        self.find(name, None).map(|(version, _)| version)
    }

    /// The handler of an exact version.
    pub fn resolve_handler_exact(&self, name: &str, version: &Version) -> Option<H> {
        self.entries.get(name)?.get(version).cloned()
    }

    /// Sets which version a start without one gets from now on, here and in all clones, so also in a runtime that was started
    /// with one. Executions that have begun stay on their version. Starts wait while the version is not registered.
    pub fn set_version_policy(&self, name: &str, policy: VersionPolicy) {
        self.policies.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), policy);
    }

    /// All names, sorted.
    pub fn list_names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// All versions of a name, lowest first.
    pub fn list_versions(&self, name: &str) -> Vec<Version> {
        self.entries.get(name).map(|versions| versions.keys().cloned().collect()).unwrap_or_default()
    }

    /// Whether the name is registered.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// How many names there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    fn find(&self, name: &str, version: Option<&str>) -> Option<(Version, H)> {
        let versions = self.entries.get(name)?;
        let found = match version {
            Some(exact) => versions.get_key_value(&Version::parse(exact).ok()?),
            None => match self.policies.read().unwrap_or_else(PoisonError::into_inner).get(name) {
                Some(VersionPolicy::Exact(exact)) => versions.get_key_value(exact),
                Some(VersionPolicy::Latest) | None => versions.last_key_value(),
            },
        };
        found.map(|(version, handler)| (version.clone(), handler.clone()))
    }

    fn policies(&self) -> Policies {
        self.policies.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Handlers for OrchestrationRegistry {
    fn resolve(&self, name: &str, version: Option<&str>) -> Option<(String, OrchestrationHandler)> {
        self.find(name, version).map(|(version, handler)| (version.to_string(), handler))
    }
}

/// Collects handlers; errors are kept for `build_result`.
pub struct RegistryBuilder<H> {
    entries: BTreeMap<String, Versions<H>>,
    policies: Policies,
    errors: Vec<RegistryError>,
}

impl<H: Clone> RegistryBuilder<H> {
    /// Adds a handler that is type-erased already.
    #[must_use]
    pub fn insert(mut self, name: String, version: &str, handler: H) -> Self {
        match Version::parse(version) {
            Ok(version) => self.add(name, version, handler),
            Err(error) => {
                let reason = error.to_string();
                self.errors.push(RegistryError::BadVersion { name, version: version.to_owned(), reason });
            }
        }
        self
    }

    /// Adds all handlers of another registry.
    #[must_use]
    pub fn merge(mut self, other: Registry<H>) -> Self {
        for (name, versions) in other.entries.iter() {
            for (version, handler) in versions {
                self.add(name.clone(), version.clone(), handler.clone());
            }
            // For its names, the other registry's policy applies, even if it has none.
            self.policies.remove(name);
        }
        self.policies.extend(other.policies());
        self
    }

    /// Sets which version a start without one gets.
    #[must_use]
    pub fn set_policy(mut self, name: impl Into<String>, policy: VersionPolicy) -> Self {
        self.policies.insert(name.into(), policy);
        self
    }

    /// The registry.
    ///
    /// # Panics
    /// When a registration was wrong, with all errors.
    pub fn build(self) -> Registry<H> {
        self.build_result().unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// The registry, or all that was wrong with the registrations.
    pub fn build_result(mut self) -> Result<Registry<H>, RegistryErrors> {
        for (name, policy) in &self.policies {
            let served = self.entries.get(name).is_some_and(|versions| match policy {
                VersionPolicy::Latest => true,
                VersionPolicy::Exact(version) => versions.contains_key(version),
            });
            if !served {
                self.errors.push(RegistryError::BadPolicy { name: name.clone(), policy: policy.clone() });
            }
        }
        if !self.errors.is_empty() {
            return Err(RegistryErrors(self.errors));
        }
        Ok(Registry { entries: Arc::new(self.entries), policies: Arc::new(RwLock::new(self.policies)) })
    }

    fn add(&mut self, name: String, version: Version, handler: H) {
        if name.is_empty() {
            self.errors.push(RegistryError::NoName);
            return;
        }
        match self.entries.entry(name.clone()).or_default().entry(version) {
            std::collections::btree_map::Entry::Occupied(taken) => {
                self.errors.push(RegistryError::Duplicate { name, version: taken.key().clone() });
            }
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(handler);
            }
        }
    }
}

impl RegistryBuilder<OrchestrationHandler> {
    /// Adds an orchestration as version 1.0.0.
    #[must_use]
    pub fn register<F, Fut>(self, name: impl Into<String>, orchestration: F) -> Self
    where
        F: Fn(OrchestrationContext, String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, String>> + Send + 'static,
    {
        self.insert(name.into(), &DEFAULT_VERSION.to_string(), erase(orchestration))
    }

    /// Adds an orchestration with typed input and output as version 1.0.0: texts as they are, everything else as JSON.
    #[must_use]
    pub fn register_typed<In, Out, F, Fut>(self, name: impl Into<String>, orchestration: F) -> Self
    where
        In: DeserializeOwned + Send + 'static,
        Out: Serialize + Send + 'static,
        F: Fn(OrchestrationContext, In) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Out, String>> + Send + 'static,
    {
        self.insert(name.into(), &DEFAULT_VERSION.to_string(), erase_typed(orchestration))
    }

    /// Adds an orchestration under an exact version.
    #[must_use]
    pub fn register_versioned<F, Fut>(self, name: impl Into<String>, version: impl AsRef<str>, orchestration: F) -> Self
    where
        F: Fn(OrchestrationContext, String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, String>> + Send + 'static,
    {
        self.insert(name.into(), version.as_ref(), erase(orchestration))
    }

    /// [`OrchestrationRegistryBuilder::register_typed`] under an exact version.
    #[must_use]
    pub fn register_versioned_typed<In, Out, F, Fut>(
        self,
        name: impl Into<String>,
        version: impl AsRef<str>,
        orchestration: F,
    ) -> Self
    where
        In: DeserializeOwned + Send + 'static,
        Out: Serialize + Send + 'static,
        F: Fn(OrchestrationContext, In) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Out, String>> + Send + 'static,
    {
        self.insert(name.into(), version.as_ref(), erase_typed(orchestration))
    }

    /// Adds several orchestrations of one type as version 1.0.0.
    #[must_use]
    pub fn register_all<N, F, Fut>(self, orchestrations: impl IntoIterator<Item = (N, F)>) -> Self
    where
        N: Into<String>,
        F: Fn(OrchestrationContext, String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, String>> + Send + 'static,
    {
        orchestrations.into_iter().fold(self, |builder, (name, orchestration)| builder.register(name, orchestration))
    }
}

fn erase<F, Fut>(orchestration: F) -> OrchestrationHandler
where
    F: Fn(OrchestrationContext, String) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<String, String>> + Send + 'static,
{
    Arc::new(move |ctx, input| Box::pin(orchestration(ctx, input)))
}

fn erase_typed<In, Out, F, Fut>(orchestration: F) -> OrchestrationHandler
where
    In: DeserializeOwned + Send + 'static,
    Out: Serialize + Send + 'static,
    F: Fn(OrchestrationContext, In) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Out, String>> + Send + 'static,
{
    Arc::new(move |ctx, input| {
        let value = TypedValue::OrchestrationInput { orchestration: ctx.orchestration_name() };
        match ctx.read::<In>(&input, &value) {
            Ok(input) => {
                let running = orchestration(ctx.clone(), input);
                let result = TypedValue::OrchestrationResult { orchestration: ctx.orchestration_name() };
                Box::pin(async move { running.await.and_then(|output| ctx.write(&output, || result)) })
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    })
}
