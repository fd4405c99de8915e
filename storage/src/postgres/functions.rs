//! Functions in the database: a file each, and created anew when a migration finds that the file has changed.

use std::collections::HashMap;

use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("sql/functions/", $name, ".sql")))),*]
    };
}

/// In an order in which each finds those that it calls.
pub(super) const FUNCTIONS: [(&str, &str); 21] = files![
    "now_ms",
    "is_known",
    "tree_of",
    "commit_group",
    "commit_turns",
    "start_instances",
    "begin_instances",
    "send_messages",
    "hold_since",
    "replace_instance",
    "save_heartbeat",
    "claim_session",
    "renew_node",
    "renew_lease",
    "acquire_shards",
    "release_shards",
    "leave",
    "forget_dead_nodes",
    "report_shortages",
    "delete_tree",
    "prune_instance",
];

/// Functions newer than the roles' grants that do more than their caller may do by itself. Until the owner grants
/// again, whoever may call one of the second may call the first.
const LATER: [(&str, &[&str]); 2] =
    [("save_heartbeat", &["claim_session"]), ("hold_since", &["send_messages", "delete_tree"])];

/// Creates those that are new or whose file has changed, inside the migration's transaction.
pub(super) async fn refresh(db: &mut PgConnection) -> Result<(), sqlx::Error> {
    let table = "CREATE TABLE IF NOT EXISTS functions (name text PRIMARY KEY, hash bytea NOT NULL)";
    db.execute(table).await?;
    let made: HashMap<String, Vec<u8>> =
        sqlx::query_as("SELECT name, hash FROM functions").fetch_all(&mut *db).await?.into_iter().collect();
    for (name, sql) in FUNCTIONS {
        let hash = Sha256::digest(sql);
        if made.get(name).is_some_and(|made| *made == hash[..]) {
            continue;
        }
        let like = LATER.iter().find(|(later, _)| *later == name).map(|(_, like)| *like);
        // Replacing takes away what the grants have given.
        let has_authority = has_authority(db, name).await?;
        db.execute(AssertSqlSafe(sql.to_owned())).await?;
        match (has_authority, like) {
            (Some(true), _) => give_authority(db, name).await?,
            (None, Some(like)) if self::has_authority(db, "delete_tree").await? == Some(true) => {
                give_authority(db, name).await?;
                db.execute(AssertSqlSafe(format!("REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC"))).await?;
                for like in like {
                    grant_like(db, name, like).await?;
                }
            }
            _ => {}
        }
        sqlx::query(
            "INSERT INTO functions (name, hash) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET hash = excluded.hash",
        )
        .bind(name)
        .bind(&hash[..])
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// Whether a function acts with the rights of its owner; `None` when it does not exist.
async fn has_authority(db: &mut PgConnection, name: &str) -> Result<Option<bool>, sqlx::Error> {
    let sql = "SELECT prosecdef FROM pg_proc WHERE proname = $1 AND pronamespace = current_schema()::regnamespace";
    sqlx::query_scalar(sql).bind(name).fetch_optional(db).await
}

/// Names of functions are plain, and a schema's was checked to be.
async fn give_authority(db: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    let schema: String = sqlx::query_scalar("SELECT current_schema()::text").fetch_one(&mut *db).await?;
    let sql = format!("ALTER FUNCTION {name} SECURITY DEFINER SET search_path = {schema}, pg_temp");
    db.execute(AssertSqlSafe(sql)).await?;
    Ok(())
}

async fn grant_like(db: &mut PgConnection, name: &str, like: &str) -> Result<(), sqlx::Error> {
    let sql = "SELECT a.grantee::regrole::text FROM pg_proc p, aclexplode(p.proacl) a \
               WHERE p.proname = $1 AND p.pronamespace = current_schema()::regnamespace AND a.grantee <> 0";
    let roles: Vec<String> = sqlx::query_scalar(sql).bind(like).fetch_all(&mut *db).await?;
    for role in roles {
        // Postgres has quoted it where it must be.
        db.execute(AssertSqlSafe(format!("GRANT EXECUTE ON FUNCTION {name} TO {role}"))).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::FUNCTIONS;

    #[test]
    fn each_file_is_one_function_of_its_name() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/postgres/sql/functions");
        let files = std::fs::read_dir(directory).unwrap().count();
        assert_eq!(files, FUNCTIONS.len());
        for (name, sql) in FUNCTIONS {
            assert!(sql.contains(&format!("CREATE OR REPLACE FUNCTION {name}(")), "{name}");
            assert_eq!(sql.matches("CREATE OR REPLACE").count(), 1, "{name}");
        }
    }
}
