//! Connections whose every use has a time limit.

use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions};
use sqlx::query::Query;
use sqlx::{PgPool, Postgres};

use super::address;
use super::executor::Executor;
use super::failure::{Failure, sql_error};
use crate::Error;
use outlast_core::Reason;

/// A large statement has more time, in proportion: at this rate, a tenth of what a slow disk takes, it is still written.
const SLOWEST_BYTES_PER_SECOND: usize = 4 << 20;

/// Statements under way.
pub(super) type Running<'c, T> = std::pin::Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'c>>;

/// A pool whose statements have a time limit.
#[derive(Clone)]
pub(super) struct Pool {
    pool: PgPool,
    limit: Duration,
    place: Arc<str>,
    executor: Arc<Executor>,
}

impl Pool {
    pub(super) fn new(options: PgConnectOptions, connections: u32, limit: Duration, executor: &Arc<Executor>) -> Self {
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
                Err(Error::unavailable(format!("no answer from Postgres within {limit:?}")))
            }
        }
    }
}

impl Pool {
    fn not_acquired(&self, error: sqlx::Error) -> Error {
        match error {
            sqlx::Error::PoolTimedOut => {
                let why = "the server is away, or all connections are taken";
                let text =
                    format!("no connection to Postgres at {} came about within {:?}: {why}", self.place, self.limit);
                Error::unavailable(Reason::because(text, error))
            }
            error => sql_error(error),
        }
    }
}
