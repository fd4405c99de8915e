//! Cluster: Postgres holds everything durable, NATS JetStream carries it to workers on any machine.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use outlast_broker::Broker;
use outlast_broker::jetstream::JetStreamBroker;
pub use outlast_broker::jetstream::{Auth, ClientCertificate, JetStreamOptions, Tls};
use outlast_client::{Provider, carry_arrivals};
use outlast_storage::Store;
use outlast_storage::postgres::PostgresStore;
pub use outlast_storage::postgres::{PostgresOptions, Roles};
use thiserror::Error;

/// Postgres and NATS JetStream. Every process of the cluster connects with the same options.
pub struct ClusterProvider {
    store: Arc<PostgresStore>,
    broker: Arc<JetStreamBroker>,
}

/// Where a cluster's servers are, and how they are used.
#[derive(Clone)]
pub struct ClusterOptions {
    /// `postgres://user:password@host/database`; `?sslmode=verify-full&sslrootcert=FILE` for TLS with a private authority,
    /// and `&sslcert=FILE&sslkey=FILE` for a client certificate.
    pub postgres_url: String,
    /// Schema, lease, shards, connections.
    pub postgres: PostgresOptions,
    /// Servers, namespace, credentials.
    pub nats: JetStreamOptions,
}

/// Why a cluster cannot be used.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Postgres refuses, or does not meet the requirements.
    #[error("Postgres: {0}")]
    Store(#[from] outlast_storage::Error),
    /// NATS refuses, or does not meet the requirements.
    #[error("NATS: {0}")]
    Broker(#[from] outlast_broker::Error),
}

impl ClusterOptions {
    /// These servers, with the defaults: namespace `outlast`, leases of 5 s, 64 shards.
    pub fn new(postgres_url: impl Into<String>, nats_url: impl Into<String>) -> Self {
        Self {
            postgres_url: postgres_url.into(),
            postgres: PostgresOptions::default(),
            nats: JetStreamOptions::new(nats_url),
        }
    }

    /// Sets another namespace: a Postgres schema and streams of that name, unseen by other namespaces of the same servers.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Self {
        name.clone_into(&mut self.postgres.schema);
        name.clone_into(&mut self.nats.namespace);
        self
    }

    /// Sets another lease: how long a silent node keeps its shards.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.postgres.lease = lease;
        self
    }
}

impl ClusterProvider {
    /// Creates or upgrades the schema, for a role that may create tables. Afterwards processes can connect with `postgres.migrate
    /// = false` and roles that may not.
    pub async fn migrate(options: &ClusterOptions) -> Result<(), ConnectError> {
        Ok(PostgresStore::migrate(&options.postgres_url, &options.postgres).await?)
    }

    /// Gives roles their rights in the schema; call it after every migration.
    pub async fn grant(options: &ClusterOptions, roles: &Roles) -> Result<(), ConnectError> {
        Ok(PostgresStore::grant(&options.postgres_url, &options.postgres, roles).await?)
    }

    /// Connects to both, checks that they are new enough and durable, and prepares schema and streams. A refusal is reported at
    /// once, a server that does not answer after five seconds, with its address and what to do. A Postgres that is starting is
    /// waited for, up to fifteen seconds.
    pub async fn connect(options: ClusterOptions) -> Result<Self, ConnectError> {
        let store = PostgresStore::connect(&options.postgres_url, options.postgres).await?;
        let broker = JetStreamBroker::connect(options.nats).await?;
        let broker = Arc::new(broker);
        store.on_arrival(carry_arrivals(broker.clone()));
        Ok(Self { store: Arc::new(store), broker })
    }
}

impl fmt::Debug for ClusterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterOptions")
            .field("postgres_url", &without_secrets(&self.postgres_url))
            .field("postgres", &self.postgres)
            .field("nats", &self.nats)
            .finish()
    }
}

/// Host and database of a URL. A password may stand before the `@` or after the `?`. Of anything else nothing is shown.
fn without_secrets(url: &str) -> String {
    let (head, query) = url.split_once('?').unwrap_or((url, ""));
    match head.split_once("://") {
        Some((scheme, rest)) if !query.contains('@') => {
            let place = rest.rsplit_once('@').map_or_else(|| rest.to_owned(), |(_, place)| format!("***@{place}"));
            let query = if query.is_empty() { "" } else { "?***" };
            format!("{scheme}://{place}{query}")
        }
        _ => "***".to_owned(),
    }
}

#[async_trait]
impl Provider for ClusterProvider {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn broker(&self) -> Arc<dyn Broker> {
        self.broker.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::ClusterOptions;

    #[test]
    fn passwords_are_not_shown() {
        for (url, shown) in [
            ("postgres://ann:s3cret@db:5432/outlast", "postgres://***@db:5432/outlast"),
            ("postgres://ann:s3@cret@db/outlast?sslmode=require", "postgres://***@db/outlast?***"),
            ("postgres://db/outlast?user=ann&password=s3cret", "postgres://db/outlast?***"),
            ("postgres://db/outlast?password=s3@cret", "***"),
            ("postgres://ann:s3?cret@db/outlast", "***"),
            ("host=db password=s3cret", "***"),
            ("postgres://db/outlast", "postgres://db/outlast"),
        ] {
            let text = format!("{:?}", ClusterOptions::new(url, "nats://ann:s3cret@nats:4222"));
            assert!(text.contains(&format!("postgres_url: {shown:?},")), "{text}");
            assert!(!text.contains("cret"), "{text}");
        }
    }
}
