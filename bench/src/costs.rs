//! What a run cost: CPU time of every process that took part, and what Postgres counted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::processes::{cpu_seconds, cpu_seconds_with_children};
use crate::servers::{Counters, Place, Servers};

/// Costs of a step, clients and servers together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Costs {
    /// CPU seconds for 1,000 steps.
    pub(crate) cpu_s_per_1000: f64,
    /// The same by process.
    pub(crate) cpu_s_per_1000_of: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "Option::is_none", flatten)]
    pub(crate) postgres: Option<PostgresCosts>,
    /// Median time of a durable write of 4 KiB on the same disk, just before the run.
    pub(crate) fsync_ms: f64,
    /// Load of the machine over the last minute, at the start of the run.
    pub(crate) load: f64,
}

/// What Postgres did for one step.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct PostgresCosts {
    pub(crate) commits_per_step: f64,
    pub(crate) wal_syncs_per_step: f64,
    pub(crate) wal_bytes_per_step: f64,
    pub(crate) rows_written_per_step: f64,
}

/// Processes whose CPU time counts.
pub(crate) struct Watched<'a> {
    /// Processes of the peer by name.
    pub(crate) programs: Vec<(String, u32)>,
    pub(crate) servers: Option<&'a Servers>,
}

/// What can be read at one moment.
pub(crate) struct Moment {
    cpu: BTreeMap<String, f64>,
    wal_bytes: i64,
}

/// A run between two moments.
pub(crate) struct Span {
    pub(crate) begin: Moment,
    pub(crate) end: Moment,
    pub(crate) counters: Option<(Counters, Counters)>,
}

impl Watched<'_> {
    pub(crate) async fn read(&self, place: Option<(&Place, &mut PgConnection)>) -> anyhow::Result<Moment> {
        let mut cpu = BTreeMap::new();
        for (name, pid) in &self.programs {
            cpu.insert(name.clone(), cpu_seconds(*pid)?);
        }
        if let Some(servers) = self.servers {
            for (name, pid) in [("postgres", servers.postmaster), ("nats", servers.nats)] {
                if let Some(pid) = pid {
                    cpu.insert(name.to_owned(), cpu_seconds_with_children(pid)?);
                }
            }
        }
        let wal_bytes = match place {
            Some((place, db)) => place.wal_bytes(db).await?,
            None => 0,
        };
        Ok(Moment { cpu, wal_bytes })
    }
}

impl Span {
    pub(crate) fn costs(&self, steps: usize, fsync_ms: f64, load: f64) -> Costs {
        let steps = steps as f64;
        let before = |name: &String| self.begin.cpu.get(name).copied().unwrap_or_default();
        let of = self.end.cpu.iter().map(|(name, after)| (name.clone(), (after - before(name)) * 1e3 / steps));
        let cpu_s_per_1000_of: BTreeMap<String, f64> = of.collect();
        let per_step = |before: i64, after: i64| (after - before) as f64 / steps;
        let postgres = self.counters.map(|(before, after)| PostgresCosts {
            commits_per_step: per_step(before.commits, after.commits),
            wal_syncs_per_step: per_step(before.wal_syncs, after.wal_syncs),
            wal_bytes_per_step: per_step(self.begin.wal_bytes, self.end.wal_bytes),
            rows_written_per_step: per_step(before.rows_written, after.rows_written),
        });
        let cpu_s_per_1000 = cpu_s_per_1000_of.values().sum();
        Costs { cpu_s_per_1000, cpu_s_per_1000_of, postgres, fsync_ms, load }
    }
}
