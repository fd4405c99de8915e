//! Handlers by name and version.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use semver::Version;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::OrchestrationContext;
use crate::context::{from_json, to_json};

/// The running code of an execution.
pub(crate) type OrchestrationFuture = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// An orchestration function, type-erased.
pub type OrchestrationHandler = Arc<
    dyn Fn(OrchestrationContext, String) -> Pin<Box<dyn Future<Output = Result<String, String>> + Send>> + Send + Sync,
>;

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

/// Where a turn finds the code to run.
pub trait Handlers: Send + Sync {
    /// The handler of an exact version, or of the version that the policy chooses; with its version.
    fn resolve(&self, name: &str, version: Option<&str>) -> Option<(String, OrchestrationHandler)>;
}

/// Handlers by name and version; immutable and cheap to clone.
#[derive(Clone)]
pub struct Registry<H> {
    entries: Arc<BTreeMap<String, Entry<H>>>,
}

#[derive(Clone)]
struct Entry<H> {
    versions: BTreeMap<Version, H>,
    policy: VersionPolicy,
}

impl<H> Default for Registry<H> {
    fn default() -> Self {
        Self { entries: Arc::default() }
    }
}

impl<H: Clone> Registry<H> {
    /// Begins an empty registry.
    pub fn builder() -> RegistryBuilder<H> {
        RegistryBuilder { entries: BTreeMap::new(), errors: Vec::new() }
    }

    /// Begins with all that `registry` has.
    pub fn builder_from(registry: &Self) -> RegistryBuilder<H> {
        RegistryBuilder { entries: (*registry.entries).clone(), errors: Vec::new() }
    }

    /// The handler that the policy chooses, with its version.
    pub fn resolve_handler(&self, name: &str) -> Option<(Version, H)> {
        self.find(name, None)
    }

    /// The handler of an exact version.
    pub fn resolve_version(&self, name: &str, version: &Version) -> Option<H> {
        self.entries.get(name)?.versions.get(version).cloned()
    }

    /// All names, sorted.
    pub fn list_names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// All versions of a name, lowest first.
    pub fn list_versions(&self, name: &str) -> Vec<Version> {
        self.entries.get(name).map(|entry| entry.versions.keys().cloned().collect()).unwrap_or_default()
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
        let entry = self.entries.get(name)?;
        let found = match (version, &entry.policy) {
            (Some(exact), _) => entry.versions.get_key_value(&Version::parse(exact).ok()?),
            (None, VersionPolicy::Exact(exact)) => entry.versions.get_key_value(exact),
            (None, VersionPolicy::Latest) => entry.versions.last_key_value(),
        };
        found.map(|(version, handler)| (version.clone(), handler.clone()))
    }
}

impl Handlers for OrchestrationRegistry {
    fn resolve(&self, name: &str, version: Option<&str>) -> Option<(String, OrchestrationHandler)> {
        self.find(name, version).map(|(version, handler)| (version.to_string(), handler))
    }
}

/// Collects handlers; errors are kept for `build_result`.
pub struct RegistryBuilder<H> {
    entries: BTreeMap<String, Entry<H>>,
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
        for (name, entry) in other.entries.iter() {
            for (version, handler) in &entry.versions {
                self.add(name.clone(), version.clone(), handler.clone());
            }
            if let Some(merged) = self.entries.get_mut(name) {
                merged.policy = entry.policy.clone();
            }
        }
        self
    }

    /// Sets which version a start without one gets.
    #[must_use]
    pub fn set_policy(mut self, name: impl Into<String>, policy: VersionPolicy) -> Self {
        let entry = self.entries.entry(name.into()).or_insert_with(Entry::new);
        entry.policy = policy;
        self
    }

    /// The registry.
    ///
    /// # Panics
    /// When a registration was wrong, with all errors.
    pub fn build(self) -> Registry<H> {
        self.build_result().unwrap_or_else(|errors| {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            panic!("the registry has {} errors: {}", lines.len(), lines.join("; "))
        })
    }

    /// The registry, or all that was wrong with the registrations.
    pub fn build_result(mut self) -> Result<Registry<H>, Vec<RegistryError>> {
        for (name, entry) in &self.entries {
            let served = match &entry.policy {
                VersionPolicy::Latest => !entry.versions.is_empty(),
                VersionPolicy::Exact(version) => entry.versions.contains_key(version),
            };
            if !served {
                self.errors.push(RegistryError::BadPolicy { name: name.clone(), policy: entry.policy.clone() });
            }
        }
        if self.errors.is_empty() { Ok(Registry { entries: Arc::new(self.entries) }) } else { Err(self.errors) }
    }

    fn add(&mut self, name: String, version: Version, handler: H) {
        if name.is_empty() {
            self.errors.push(RegistryError::NoName);
            return;
        }
        let entry = self.entries.entry(name.clone()).or_insert_with(Entry::new);
        match entry.versions.entry(version) {
            std::collections::btree_map::Entry::Occupied(taken) => {
                self.errors.push(RegistryError::Duplicate { name, version: taken.key().clone() });
            }
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(handler);
            }
        }
    }
}

impl<H> Entry<H> {
    fn new() -> Self {
        Self { versions: BTreeMap::new(), policy: VersionPolicy::Latest }
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

    /// Adds an orchestration with JSON on both sides as version 1.0.0.
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

    /// Adds an orchestration with JSON on both sides under an exact version.
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
    Arc::new(move |ctx, input| match from_json::<In>(Ok(input)) {
        Ok(input) => {
            let running = orchestration(ctx, input);
            Box::pin(async move { running.await.and_then(|output| to_json(&output)) })
        }
        Err(error) => Box::pin(std::future::ready(Err(format!("orchestration input: {error}")))),
    })
}
