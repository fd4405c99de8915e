//! The orchestration: plan, copy page by page, write the manifest.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outlast::{BackoffStrategy, OrchestrationContext, RetryPolicy};
use serde::{Deserialize, Serialize};

use crate::entry::{from_hex, to_hex};

/// Batches that one execution fans out; the next one goes on, with an empty history.
const BATCHES_PER_EXECUTION: u64 = 32;
/// Missing entries that the result names; the manifest names all.
const MISSING_SHOWN: usize = 20;

/// The input of every execution of a backup. The destination is not in it: it is where the state database lies, so that
/// an unfinished backup can be moved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Backup {
    /// The path as bytes in hex: it need not be UTF-8.
    pub(crate) source_hex: String,
    pub(crate) generation: u64,
    /// The first batch that is not done.
    pub(crate) next_batch: u64,
    /// Known once the plan is made.
    pub(crate) batches: Option<u64>,
    pub(crate) progress: Progress,
}

/// How far a backup is, and its result.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) files: u64,
    pub(crate) done: u64,
    pub(crate) bytes: u64,
    pub(crate) unreadable: u64,
    pub(crate) vanished: u64,
    /// What is not in the backup, as it is shown.
    pub(crate) first_missing: Vec<String>,
    /// Known at the end.
    pub(crate) written: Written,
}

/// The objects that a backup has put into the store, however often it was killed.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Written {
    pub(crate) objects: u64,
    /// Those among them that replaced a damaged one.
    pub(crate) damaged: u64,
}

/// What was found in the source.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Planned {
    pub(crate) files: u64,
    pub(crate) batches: u64,
}

/// A batch of files, by its number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub(crate) job: Backup,
    pub(crate) number: u64,
}

impl Backup {
    pub(crate) fn new(source: &Path, generation: u64) -> Self {
        Self {
            source_hex: to_hex(source.as_os_str().as_bytes()),
            generation,
            next_batch: 0,
            batches: None,
            progress: Progress::default(),
        }
    }

    /// The directory that is backed up.
    pub(crate) fn source(&self) -> anyhow::Result<PathBuf> {
        Ok(PathBuf::from(OsStr::from_bytes(&from_hex(&self.source_hex)?)))
    }

    /// The same job without what changes, so that activity inputs stay small.
    fn bare(&self) -> Self {
        Self { progress: Progress::default(), ..self.clone() }
    }
}

/// One execution: some batches, then the next execution or the end.
pub(crate) async fn backup(ctx: OrchestrationContext, mut job: Backup) -> Result<Progress, String> {
    let batches = match job.batches {
        Some(batches) => batches,
        None => {
            let planned: Planned = ctx.schedule_activity_with_retry_typed("Plan", &job.bare(), patience()).await?;
            job.progress.files = planned.files;
            job.batches = Some(planned.batches);
            planned.batches
        }
    };
    publish(&ctx, &job);
    let end = batches.min(job.next_batch + BATCHES_PER_EXECUTION);
    let bare = job.bare();
    let copies = (job.next_batch..end).map(|number| {
        let (ctx, batch) = (ctx.clone(), Batch { job: bare.clone(), number });
        async move { ctx.schedule_activity_with_retry_typed::<_, Progress>("CopyBatch", &batch, patience()).await }
    });
    for copied in ctx.join(copies.collect()).await {
        job.progress.add(copied?);
    }
    job.next_batch = end;
    publish(&ctx, &job);
    if end < batches {
        ctx.continue_as_new_typed(&job).await?;
    }
    job.progress.written = ctx.schedule_activity_with_retry_typed("WriteManifest", &job.bare(), patience()).await?;
    Ok(job.progress)
}

/// A disk that is full or a share that is away comes back; what is still wrong then ends the backup with an error.
fn patience() -> RetryPolicy {
    let (base, max) = (Duration::from_millis(200), Duration::from_secs(10));
    RetryPolicy::new(8).with_backoff(BackoffStrategy::Exponential { base, multiplier: 2.0, max })
}

fn publish(ctx: &OrchestrationContext, job: &Backup) {
    ctx.set_kv_value_typed("progress", &job.progress);
    ctx.set_custom_status(serde_json::to_string(&job.progress).unwrap_or_default());
}

impl Progress {
    fn add(&mut self, other: Self) {
        self.done += other.done;
        self.bytes += other.bytes;
        self.unreadable += other.unreadable;
        self.vanished += other.vanished;
        self.first_missing.extend(other.first_missing);
        self.first_missing.truncate(MISSING_SHOWN);
    }
}
