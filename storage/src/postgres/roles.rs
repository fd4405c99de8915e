//! Roles with no more rights than they need.

use sqlx::{AssertSqlSafe, Executor as _};

use super::connect;
use super::failure::Failure;
use super::{PostgresOptions, PostgresStore, schema};
use crate::Error;
use outlast_core::Reason;

const GRANTS: &str = include_str!("sql/grants.sql");

/// Names of roles that exist in the database. A login role is given one or several of them (`GRANT ... TO ...`): a service that
/// runs orchestrations and activities and has a client needs three.
#[derive(Clone, Debug)]
pub struct Roles {
    /// Runs orchestrations: no DDL, and nothing in a history is changed or deleted.
    pub runtime: String,
    /// Runs activities: its own node, sessions, heartbeats, results.
    pub worker: String,
    /// Starts, signals and reads.
    pub client: String,
    /// Deletes instances and prunes executions; without it these calls are `ManagementNotAvailable`.
    pub retention: String,
}

impl PostgresStore {
    /// Gives the roles their rights in a schema that is up to date, and takes them from everybody else. The owner of the
    /// schema runs it, after every migration.
    pub async fn grant(url: &str, options: &PostgresOptions, roles: &Roles) -> Result<(), Error> {
        let mut sql = GRANTS.replace("{schema}", &options.schema);
        for (name, role) in [
            ("{runtime}", &roles.runtime),
            ("{worker}", &roles.worker),
            ("{client}", &roles.client),
            ("{retention}", &roles.retention),
        ] {
            schema::check_name(role)?;
            sql = sql.replace(name, role);
        }
        let opened = connect::open(url, &PostgresOptions { migrate: false, ..options.clone() }).await?;
        let done = opened.pools.general.run(|db| {
            Box::pin(async move {
                let mut tx = sqlx::Connection::begin(&mut **db).await?;
                tx.execute(AssertSqlSafe(sql)).await.map_err(|error| {
                    let text = format!("the roles were not given their rights: {error}");
                    Failure::Store(Error::unusable(Reason::because(text, error)))
                })?;
                Ok(tx.commit().await?)
            })
        });
        done.await
    }
}
