//! Connections: one for commits, one for leases, a pool for the rest; every use of one has a time limit.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outlast_core::{InstanceId, Millis};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions};
use sqlx::query::Query;
use sqlx::{Connection as _, PgConnection, PgPool, Postgres};

use super::executor::Executor;
use super::{PostgresOptions, address, checks, schema};
use crate::Error;

/// Longest wait for the first connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long a server that is starting is waited for, and the pause between two looks.
const START_MAX: Duration = Duration::from_secs(15);
const START_PAUSE: Duration = Duration::from_millis(200);
/// Longest time for one statement, connecting included. Beyond it the connection is given up, as over a cut network.
const STATEMENT_MAX: Duration = Duration::from_secs(15);
/// A large statement has more time, in proportion: at this rate it is still written.
const SLOWEST_BYTES_PER_SECOND: usize = 4 << 20;
/// What a failure of TLS can come from.
const CHECK_TLS: &str = "check that the server offers TLS, that sslrootcert holds the authority of its certificate, that the \
                         certificate holds the host name of the URL, and sslcert and sslkey";
/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 256;

pub(super) struct Pools {
    /// One connection: commits are grouped, so a second one brings nothing.
    pub(super) commits: Pool,
    /// One connection for renewals alone, so that nothing ever delays one. It belongs to the executor that renews.
    pub(super) leases: Pool,
    pub(super) general: Pool,
}

pub(super) struct Opened {
    pub(super) pools: Pools,
    pub(super) shards: u16,
    pub(super) now: Millis,
}

/// A pool whose statements have a time limit.
#[derive(Clone)]
pub(super) struct Pool {
    pool: PgPool,
    limit: Duration,
    place: Arc<str>,
    executor: Arc<Executor>,
}

impl Pool {
    fn new(options: PgConnectOptions, (connections, limit): (u32, Duration), executor: &Arc<Executor>) -> Self {
        let place = address::place(&options).into();
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(limit)
            .test_before_acquire(false)
            .connect_lazy_with(options);
        Self { pool, limit, place, executor: Arc::clone(executor) }
    }

    /// Runs a statement without a result.
    pub(super) async fn execute(&self, query: Query<'static, Postgres, PgArguments>) -> Result<(), Error> {
        self.run(|db| {
            Box::pin(async move {
                query.execute(&mut **db).await?;
                Ok(())
            })
        })
        .await
    }

    /// Runs one statement, or several of a transaction, on a connection that is thrown away unless they end in time.
    pub(super) async fn run<T, W>(&self, work: W) -> Result<T, Error>
    where
        W: for<'c> FnOnce(&'c mut PoolConnection<Postgres>) -> Running<'c, T>,
    {
        self.run_large(0, work).await
    }

    /// As `run`, for a statement that carries so many bytes and has the longer time for it.
    pub(super) async fn run_large<T, W>(&self, bytes: usize, work: W) -> Result<T, Error>
    where
        W: for<'c> FnOnce(&'c mut PoolConnection<Postgres>) -> Running<'c, T>,
    {
        self.executor.check()?;
        let mut connection = self.pool.acquire().await.map_err(|error| self.not_acquired(error))?;
        let limit = self.limit + Duration::from_secs((bytes / SLOWEST_BYTES_PER_SECOND) as u64);
        match tokio::time::timeout(limit, work(&mut connection)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                if !matches!(error, Failure::Sql(sqlx::Error::Database(_)) | Failure::Store(_)) {
                    drop(connection.detach());
                }
                Err(error.into())
            }
            Err(_elapsed) => {
                drop(connection.detach());
                Err(Error::Unavailable(format!("no answer from Postgres within {limit:?}")))
            }
        }
    }
}

impl Pool {
    fn not_acquired(&self, error: sqlx::Error) -> Error {
        match error {
            sqlx::Error::PoolTimedOut => Error::Unavailable(format!(
                "no connection to Postgres at {} came about within {:?}: the server is away, or all connections are taken",
                self.place, self.limit
            )),
            error => sql_error(error),
        }
    }
}

/// Statements under way.
pub(super) type Running<'c, T> = std::pin::Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'c>>;

/// What a statement can end in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Sql(error) => sql_error(error),
            Failure::Store(error) => error,
        }
    }
}

pub(super) async fn open(url: &str, options: &PostgresOptions) -> Result<Opened, Error> {
    options.check()?;
    schema::check_name(&options.schema)?;
    let base = address::parse(url)?.application_name("outlast").statement_cache_capacity(STATEMENTS).options([
        ("search_path", options.schema.as_str()),
        ("jit", "off"),
        ("default_transaction_isolation", "read committed"),
    ]);
    // Plans are made once, perhaps while a table is still small; by index they stay right when it has grown.
    let by_index = base.clone().options([
        ("enable_seqscan", "off"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
        ("plan_cache_mode", "force_generic_plan"),
    ]);
    let reached = base.clone();
    let executor = Arc::new(Executor::here());
    let pools = Pools {
        commits: Pool::new(by_index.clone(), (1, STATEMENT_MAX), &executor),
        leases: Pool::new(base, (1, options.lease), &executor),
        general: Pool::new(by_index, (options.connections.max(1), STATEMENT_MAX), &executor),
    };
    reach(&reached).await?;
    checks::check_settings(&pools.general).await?;
    let shards = schema::prepare(&pools.general, options).await?;
    let now = checks::check_clock(&pools.general, options).await?;
    Ok(Opened { pools, shards, now })
}

/// Makes one connection by itself: a pool goes on trying, and says in the end only that none came about.
async fn reach(options: &PgConnectOptions) -> Result<(), Error> {
    let place = address::place(options);
    let unavailable = |why: &dyn std::fmt::Display| {
        Error::Unavailable(format!(
            "no Postgres at {place} ({why}): check host and port, and that the server runs there and takes connections"
        ))
    };
    let begun = Instant::now();
    loop {
        match tokio::time::timeout(CONNECT_MAX, PgConnection::connect_with(options)).await {
            Ok(Ok(connection)) => {
                // It has done its work; the server notices its end in any case.
                let _closed = tokio::time::timeout(CONNECT_MAX, connection.close()).await;
                return Ok(());
            }
            Ok(Err(error)) if is_starting(&error) && begun.elapsed() < START_MAX => {
                tokio::time::sleep(START_PAUSE).await;
            }
            Ok(Err(error)) => {
                return Err(match sql_error(error) {
                    Error::Unavailable(why) => unavailable(&why),
                    Error::Unusable(why) => Error::Unusable(format!("{why} (asked at {place})")),
                    other => other,
                });
            }
            Err(_elapsed) => return Err(unavailable(&format!("no answer within {CONNECT_MAX:?}"))),
        }
    }
}

/// Whether the server says that it will soon take connections.
fn is_starting(error: &sqlx::Error) -> bool {
    code_of(error).as_deref() == Some("57P03")
}

/// The SQLSTATE of a failed statement; `None` when the database did not answer.
pub(super) fn code_of(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error().and_then(|error| error.code())
}

/// What a failed statement means for the caller.
pub(super) fn sql_error(error: sqlx::Error) -> Error {
    match (code_of(&error).as_deref(), &error) {
        (Some("42501"), _) => Error::Forbidden(error.to_string()),
        (Some("28P01" | "28000" | "3D000"), _) => Error::Unusable(format!(
            "Postgres refuses: {error}: check user, password, client certificate, database and grants"
        )),
        (Some("42P01" | "42883" | "3F000"), _) => {
            Error::Unusable(format!("the schema is not up to date: {error}: run the migration first"))
        }
        (None, sqlx::Error::Tls(_) | sqlx::Error::Configuration(_)) => Error::Unusable(format!("{error}: {CHECK_TLS}")),
        (None, sqlx::Error::Io(failed)) if failed.kind() == ErrorKind::InvalidData => {
            Error::Unusable(format!("TLS with Postgres failed ({failed}): {CHECK_TLS}"))
        }
        _ => Error::Unavailable(error.to_string()),
    }
}

/// Whether a statement failed because of what was to be written: the same group, split, may go through.
pub(super) fn is_refusal(error: &sqlx::Error) -> bool {
    code_of(error).is_some_and(|code| ["22", "23", "54", "P0", "OL"].iter().any(|class| code.starts_with(class)))
}

/// Whether it failed because another transaction was in the way: doing it again is all that is needed.
pub(super) fn is_collision(error: &sqlx::Error) -> bool {
    matches!(code_of(error).as_deref(), Some("40P01" | "40001" | "55P03"))
}

pub(super) fn corrupt(instance: &InstanceId, reason: String) -> Error {
    Error::Corrupt { instance: instance.clone(), reason }
}
