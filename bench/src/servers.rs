//! The Postgres and the nats-server that peers run on, and a place of its own there for every run.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::TryStreamExt;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

use crate::processes;

/// Where Postgres is, for us and for the programs we start.
pub(crate) const POSTGRES_URL: &str = "OUTLAST_POSTGRES_URL";
/// Where the nats-server is.
pub(crate) const NATS_URL: &str = "OUTLAST_NATS_URL";
/// Keeps the streams of one run apart from all others.
pub(crate) const NAMESPACE: &str = "OUTLAST_BENCH_NAMESPACE";

/// Postgres 18.
const VERSION_18: i32 = 180_000;
/// How long the connections of ended processes may take to end.
const GOODBYE: Duration = Duration::from_secs(10);

/// Running servers.
pub(crate) struct Servers {
    postgres: PgConnectOptions,
    nats_url: String,
    version: i32,
    /// The first process of Postgres, if it runs on this machine in sight.
    pub(crate) postmaster: Option<u32>,
    pub(crate) nats: Option<u32>,
    places: Cell<usize>,
    /// What was started here ends with this.
    _started: Option<Started>,
}

/// Servers of our own, with notes of where they run; they end when this is dropped.
struct Started {
    state: tempfile::TempDir,
}

/// A database and a namespace for one run.
pub(crate) struct Place {
    pub(crate) postgres_url: String,
    pub(crate) nats_url: String,
    /// Name of both.
    pub(crate) name: String,
    database: PgConnectOptions,
    version: i32,
}

/// What Postgres has counted so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counters {
    pub(crate) commits: i64,
    pub(crate) wal_syncs: i64,
    pub(crate) rows_written: i64,
}

impl Servers {
    /// Those of the environment; what it does not name is started, for this run of the program only.
    pub(crate) async fn up() -> anyhow::Result<Self> {
        let named = |name| std::env::var(name).ok();
        let (postgres_url, nats_url, started) = match (named(POSTGRES_URL), named(NATS_URL)) {
            (Some(postgres), Some(nats)) => (postgres, nats, None),
            _ => start()?,
        };
        let postgres = PgConnectOptions::from_str(&postgres_url).context("the Postgres URL")?;
        let mut db = postgres.connect().await.context("Postgres cannot be reached")?;
        let (version, backend): (i32, i32) =
            sqlx::query_as(include_str!("sql/server.sql")).fetch_one(&mut db).await.context("the server's version")?;
        let postmaster = processes::stat(backend.cast_unsigned()).ok();
        let postmaster = postmaster.filter(|stat| stat.name.starts_with("postgres")).map(|stat| stat.parent);
        let nats = nats_url.rsplit_once(':').and_then(|(_, port)| processes::listener(port.parse().ok()?));
        for (server, process) in [("Postgres", postmaster), ("nats-server", nats)] {
            if process.is_none() {
                eprintln!("the processes of {server} are not in sight: its CPU time is missing from all figures");
            }
        }
        Ok(Self { postgres, nats_url, version, postmaster, nats, places: Cell::new(0), _started: started })
    }

    /// An empty database and an unused namespace.
    pub(crate) async fn fresh_place(&self) -> anyhow::Result<Place> {
        self.places.set(self.places.get() + 1);
        let name = format!("bench_{}_{}", std::process::id(), self.places.get());
        let mut db = self.postgres.connect().await?;
        db.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await?;
        // So that no run pays for the dirty pages of the one before.
        db.execute("CHECKPOINT").await?;
        let database = self.postgres.clone().database(&name);
        Ok(Place {
            postgres_url: database.to_url_lossy().to_string(),
            nats_url: self.nats_url.clone(),
            name,
            database,
            version: self.version,
        })
    }

    pub(crate) async fn clear(&self, place: Place) -> anyhow::Result<()> {
        let mut db = self.postgres.connect().await?;
        db.execute(AssertSqlSafe(format!("DROP DATABASE {} WITH (FORCE)", place.name))).await?;
        let streams = async_nats::jetstream::new(async_nats::connect(&self.nats_url).await?);
        let names: Vec<String> = streams.stream_names().try_collect().await?;
        for stream in names.into_iter().filter(|stream| stream.starts_with(&format!("{}_", place.name))) {
            streams.delete_stream(stream).await?;
        }
        Ok(())
    }
}

impl Place {
    /// Inside the namespace of the run.
    pub(crate) async fn connect(&self) -> anyhow::Result<PgConnection> {
        Ok(self.database.clone().options([("search_path", &self.name)]).connect().await?)
    }

    /// Bytes of WAL that the server has written so far.
    pub(crate) async fn wal_bytes(&self, db: &mut PgConnection) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar(include_str!("sql/wal_position.sql")).fetch_one(db).await?)
    }

    pub(crate) async fn counters(&self, db: &mut PgConnection) -> anyhow::Result<Counters> {
        let sql = if self.version < VERSION_18 {
            include_str!("sql/counters.sql")
        } else {
            include_str!("sql/counters_18.sql")
        };
        let (commits, wal_syncs, rows_written) = sqlx::query_as(sql).fetch_one(db).await?;
        Ok(Counters { commits, wal_syncs, rows_written })
    }

    /// The counters once all other connections have ended; before that their last counts are missing.
    pub(crate) async fn final_counters(&self) -> anyhow::Result<Counters> {
        let mut db = self.connect().await?;
        let wait = async {
            while sqlx::query_scalar::<_, i64>(include_str!("sql/others.sql")).fetch_one(&mut db).await? > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(GOODBYE, wait).await.context("connections of ended processes stay open")??;
        let counters = self.counters(&mut db).await?;
        db.close().await?;
        Ok(counters)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Err(error) = script("down", self.state.path()) {
            eprintln!("the servers were not stopped: {error:#}");
        }
    }
}

fn start() -> anyhow::Result<(String, String, Option<Started>)> {
    let started = Started { state: tempfile::tempdir()? };
    eprintln!("starting Postgres and nats-server");
    let said = script("up", started.state.path())?;
    let value = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(str::to_owned).with_context(|| format!("deploy/services names no {name}"))
    };
    Ok((value(POSTGRES_URL)?, value(NATS_URL)?, Some(started)))
}

fn script(what: &str, state: &Path) -> anyhow::Result<String> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/services");
    let output = Command::new(script).arg(what).arg(state).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "deploy/services {what} failed");
    Ok(String::from_utf8(output.stdout)?)
}
