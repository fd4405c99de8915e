//! Schema steps, each made once, under a lock, in one transaction.

use sqlx::AssertSqlSafe;
use sqlx::Executor as _;

use super::PostgresOptions;
use super::failure::Failure;
use super::functions;
use super::pool::Pool;
use crate::Error;
use outlast_core::Reason;

/// What each step does to the tables, in order. A step is never changed, only followed by others. An empty one recreates the
/// functions ([`super::functions`]), and so do those that created functions before these had their own files. Programs of two
/// versions share a schema while nodes are upgraded, so a function that changes its meaning gets a new name.
const STEPS: [&str; 7] = [
    include_str!("sql/steps/001_tables.sql"),
    "",
    "",
    "",
    include_str!("sql/steps/005_paused.sql"),
    include_str!("sql/steps/006_ended_roots.sql"),
    "",
];
/// Longest name that Postgres keeps whole.
const NAME_BYTES_MAX: usize = 63;

/// A schema name becomes part of SQL text, so it is plain.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if plain && begins && name.len() <= NAME_BYTES_MAX && !name.starts_with("pg_") {
        return Ok(());
    }
    Err(Error::unusable(format!(
        "schema name {name:?}: use lowercase letters, digits and underscores, a letter first, at most {NAME_BYTES_MAX}"
    )))
}

/// Makes or checks the schema; returns how many shards it has.
pub(super) async fn prepare(pool: &Pool, options: &PostgresOptions) -> Result<u16, Error> {
    let version = version(pool, &options.schema).await?;
    let newest = STEPS.len();
    if version > newest {
        return Err(Error::unusable(format!(
            "schema {} has version {version}, this program knows up to {newest}: upgrade the program",
            options.schema
        )));
    }
    if version < newest && !options.migrate {
        return Err(Error::unusable(format!(
            "schema {} has version {version} and needs {newest}: run the migration with a role that may create tables",
            options.schema
        )));
    }
    if version < newest {
        migrate(pool, options).await?;
    }
    let count = pool.run(|db| {
        Box::pin(
            async move { Ok(sqlx::query_scalar::<_, i64>("SELECT count(*) FROM shards").fetch_one(&mut **db).await?) },
        )
    });
    u16::try_from(count.await?).map_err(|_| Error::unusable("the schema has too many shards"))
}

/// Steps that were made; 0 when there is no schema yet.
async fn version(pool: &Pool, schema: &str) -> Result<usize, Error> {
    let schema = schema.to_owned();
    let version = pool.run(|db| {
        Box::pin(async move {
            let exists: bool = sqlx::query_scalar("SELECT to_regclass($1 || '.migrations') IS NOT NULL")
                .bind(schema)
                .fetch_one(&mut **db)
                .await?;
            if !exists {
                return Ok(0);
            }
            Ok(sqlx::query_scalar::<_, i64>("SELECT count(*) FROM migrations").fetch_one(&mut **db).await?)
        })
    });
    Ok(usize::try_from(version.await?).unwrap_or(0))
}

async fn migrate(pool: &Pool, options: &PostgresOptions) -> Result<(), Error> {
    let (schema, shards) = (options.schema.clone(), i32::from(options.shards.max(1)));
    let done = pool.run(|db| {
        Box::pin(async move {
            let mut tx = sqlx::Connection::begin(&mut **db).await?;
            // Programs that start at the same time make the schema once.
            sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('outlast ' || $1, 0))")
                .bind(&schema)
                .execute(&mut *tx)
                .await?;
            // The name was checked to be plain.
            let head = format!(
                "CREATE SCHEMA IF NOT EXISTS {schema}; CREATE TABLE IF NOT EXISTS migrations (step int4 PRIMARY KEY, \
                 made timestamptz NOT NULL DEFAULT now())"
            );
            tx.execute(AssertSqlSafe(head)).await.map_err(denied)?;
            let made: i64 = sqlx::query_scalar("SELECT count(*) FROM migrations").fetch_one(&mut *tx).await?;
            for (step, sql) in STEPS.iter().enumerate().skip(usize::try_from(made).unwrap_or(0)) {
                tx.execute(*sql).await.map_err(denied)?;
                sqlx::query("INSERT INTO migrations (step) VALUES ($1)")
                    .bind(i32::try_from(step + 1).unwrap_or(i32::MAX))
                    .execute(&mut *tx)
                    .await?;
            }
            functions::refresh(&mut tx).await.map_err(denied)?;
            sqlx::query(
                "INSERT INTO shards (id) SELECT generate_series(0, $1 - 1) WHERE NOT EXISTS (SELECT FROM shards)",
            )
            .bind(shards)
            .execute(&mut *tx)
            .await?;
            Ok(tx.commit().await?)
        })
    });
    done.await
}

fn denied(error: sqlx::Error) -> Failure {
    let text = format!("the schema could not be brought up to date: {error}");
    Failure::Store(Error::unusable(Reason::because(text, error)))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::STEPS;
    use crate::postgres::functions::FUNCTIONS;

    /// What databases were made with must not change: add a step instead, an empty one when only functions change.
    #[test]
    fn steps_and_the_functions_of_the_newest_are_as_they_were() {
        let short =
            |text: &str| Sha256::digest(text).iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
        let empty = short("");
        let known = ["662793a3", &empty, &empty, &empty, "43a0f2c9", "ebed3dd7", &empty];
        assert_eq!(STEPS.map(short).to_vec(), known);
        let functions: String = FUNCTIONS.iter().map(|(_, sql)| *sql).collect();
        assert_eq!((STEPS.len(), short(&functions).as_str()), (7, "219e67d9"));
    }
}
