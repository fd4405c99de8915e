//! Connecting: one connection for commits, one for leases, a pool for the rest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outlast_core::{Millis, Reason};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};

use super::executor::Executor;
use super::failure::{code_of, sql_error};
use super::pool::Pool;
use super::{PostgresOptions, address, checks, schema};
use crate::Error;

/// Longest wait for the first connection: long enough for a server across an ocean, short enough for a typing error in an address.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long a server that is starting is waited for, and the pause between two looks. Replaying the log after a crash
/// takes seconds; longer than this, whoever supervises the process should know.
const START_MAX: Duration = Duration::from_secs(15);
const START_PAUSE: Duration = Duration::from_millis(200);
/// Longest time for one statement, connecting included. Beyond it the connection is given up, as over a cut network.
const STATEMENT_MAX: Duration = Duration::from_secs(15);
/// Prepared statements that a connection keeps: more than there are texts of statements, so none is prepared twice.
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
        commits: Pool::new(by_index.clone(), 1, STATEMENT_MAX, &executor),
        leases: Pool::new(base, 1, options.lease, &executor),
        general: Pool::new(by_index, options.connections.max(1), STATEMENT_MAX, &executor),
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
    let unavailable = |why: Reason| {
        let advice = "check host and port, and that the server runs there and takes connections";
        let text = format!("no Postgres at {place} ({why}): {advice}");
        Error::unavailable(why.reworded(text))
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
                    Error::Unavailable(why) => unavailable(why),
                    Error::Unusable(why) => {
                        let text = format!("{why} (asked at {place})");
                        Error::unusable(why.reworded(text))
                    }
                    other => other,
                });
            }
            Err(_elapsed) => return Err(unavailable(format!("no answer within {CONNECT_MAX:?}").into())),
        }
    }
}

/// Whether the server says that it will soon take connections.
fn is_starting(error: &sqlx::Error) -> bool {
    code_of(error).as_deref() == Some("57P03")
}
