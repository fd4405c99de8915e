//! What is looked at before a server is used: its version, its settings, its clock. Each refusal and warning says what to do.

use std::time::{Duration, SystemTime};

use outlast_core::Millis;

use super::PostgresOptions;
use super::pool::Pool;
use crate::Error;

/// The oldest server that is known to work.
const SERVER_VERSION_MIN: u32 = 150_000;
/// Beyond this difference between this machine's clock and the database's, log lines and traces are hard to read together.
const CLOCK_APART_MAX: Duration = Duration::from_secs(5);
/// How far, beyond a lease, a node's lease may end in the future. A standby that takes over may be a little behind, and
/// another process may have a longer lease; a clock that is further back holds up every takeover and timer for so long.
const CLOCK_BACK_MAX: Duration = Duration::from_secs(120);

/// Refuses a server that is too old or that would lose what it has acknowledged.
pub(super) async fn check_settings(pool: &Pool) -> Result<(), Error> {
    let sql = "SELECT name, setting FROM pg_settings \
               WHERE name IN ('server_version_num', 'fsync', 'full_page_writes', 'synchronous_commit')";
    let settings = pool
        .run(|db| Box::pin(async move { Ok(sqlx::query_as::<_, (String, String)>(sql).fetch_all(&mut **db).await?) }));
    for (name, setting) in settings.await? {
        match (name.as_str(), setting.as_str()) {
            ("server_version_num", version) if version.parse().unwrap_or(0) < SERVER_VERSION_MIN => {
                return Err(Error::unusable(format!("the Postgres server has version {version}: use 15 or newer")));
            }
            ("fsync" | "synchronous_commit", "off") => {
                return Err(Error::unusable(format!(
                    "the Postgres server runs with {name} = off and would lose acknowledged work: set it to on"
                )));
            }
            ("full_page_writes", "off") => tracing::warn!(
                target: "outlast::storage",
                "Postgres runs with full_page_writes = off: a power failure may damage it; set it to on"
            ),
            _ => {}
        }
    }
    Ok(())
}

/// Reads the database's clock. Nothing depends on this machine's clock, so a difference is only logged. A database whose clock
/// has gone back is refused: until it caught up, dead nodes would keep their leases and timers would wait. A restored backup is
/// older than the clock, never newer, and passes.
pub(super) async fn check_clock(pool: &Pool, options: &PostgresOptions) -> Result<Millis, Error> {
    let before = machine_time();
    let sql = "SELECT now_ms(), (SELECT max(lease_until) FROM nodes)";
    let read = pool.run(|db| {
        Box::pin(async move { Ok(sqlx::query_as::<_, (i64, Option<i64>)>(sql).fetch_one(&mut **db).await?) })
    });
    let (now, lease_until) = read.await?;
    let clocks = Clocks { before, after: machine_time(), database: Millis(now.cast_unsigned()) };
    if let Some(apart) = clocks.apart() {
        tracing::warn!(
            target: "outlast::storage",
            seconds = apart.as_secs(),
            "the clocks of this machine and of the database differ: log lines and traces will not line up; synchronise both (NTP)"
        );
    }
    let newest = lease_until.map_or(clocks.database, |until| Millis(until.cast_unsigned()));
    match clocks.back(newest, options.lease) {
        Some(back) => Err(Error::unusable(format!(
            "the database's clock is about {} s behind what a node has written by it: set the clock of its server right. If \
             it is right now and was ahead before, delete the rows of {}.nodes whose lease_until lies ahead. If other \
             nodes have a longer lease, use the same",
            back.as_secs(),
            options.schema
        ))),
        None => Ok(clocks.database),
    }
}

fn machine_time() -> Millis {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// The database's time, and this machine's before it was asked for and after it arrived.
struct Clocks {
    before: Millis,
    after: Millis,
    database: Millis,
}

impl Clocks {
    /// How far the clocks are certainly apart, when that is too far.
    fn apart(&self) -> Option<Duration> {
        let (early, late) = (between(self.database, self.before), between(self.after, self.database));
        Some(early.max(late)).filter(|apart| *apart > CLOCK_APART_MAX)
    }

    /// How far the database's clock has gone back since a lease was written, when that is too far.
    fn back(&self, lease_until: Millis, lease: Duration) -> Option<Duration> {
        Some(between(self.database, lease_until).saturating_sub(lease)).filter(|back| *back > CLOCK_BACK_MAX)
    }
}

/// From one moment to a later one; nothing when it is not later.
fn between(from: Millis, to: Millis) -> Duration {
    Duration::from_millis(to.0.saturating_sub(from.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(5);

    fn clocks(before: u64, after: u64, database: u64) -> Clocks {
        Clocks { before: Millis(before), after: Millis(after), database: Millis(database) }
    }

    #[test]
    fn a_slow_answer_is_no_difference_of_clocks() {
        assert_eq!(clocks(100_000, 120_000, 101_000).apart(), None);
        assert_eq!(clocks(100_000, 120_000, 119_000).apart(), None);
        assert_eq!(clocks(100_000, 100_001, 95_001).apart(), None);
    }

    #[test]
    fn clocks_that_are_apart_are_told_by_how_much() {
        assert_eq!(clocks(100_000, 100_010, 40_000).apart(), Some(Duration::from_secs(60)));
        assert_eq!(clocks(100_000, 100_010, 160_010).apart(), Some(Duration::from_secs(60)));
    }

    #[test]
    fn a_database_may_be_a_little_behind_its_own_leases_and_not_more() {
        let database = clocks(0, 0, 1_000_000);
        assert_eq!(database.back(Millis(1), LEASE), None);
        assert_eq!(database.back(Millis(1_005_000), LEASE), None);
        assert_eq!(database.back(Millis(1_125_000), LEASE), None);
        assert_eq!(database.back(Millis(1_125_001), LEASE), Some(Duration::from_millis(120_001)));
        assert_eq!(database.back(Millis(1_125_001), LEASE * 10), None);
    }
}
