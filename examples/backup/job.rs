//! The orchestration: plan, copy page by page, write the manifest.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use outlast::{BackoffStrategy, OrchestrationContext, RetryPolicy};
use serde::{Deserialize, Serialize};

use crate::entry::to_hex;

/// Batches that one execution fans out; the next one goes on, with an empty history.
const BATCHES_PER_EXECUTION: u64 = 32;
/// Unreadable paths that the result names; the manifest names all.
const UNREADABLE_SHOWN: usize = 20;

/// The input of every execution of a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Backup {
    /// Paths as bytes in hex: they need not be UTF-8.
    pub(crate) source_hex: String,
    pub(crate) destination_hex: String,
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
    pub(crate) copied: u64,
    pub(crate) unreadable: u64,
    pub(crate) first_unreadable: Vec<String>,
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
    pub(crate) fn new(source: &Path, destination: &Path, generation: u64) -> anyhow::Result<Self> {
        Ok(Self {
            source_hex: to_hex(source.as_os_str().as_bytes()),
            destination_hex: to_hex(destination.as_os_str().as_bytes()),
            generation,
            next_batch: 0,
            batches: None,
            progress: Progress::default(),
        })
    }

    /// What tells backups of different directories apart.
    pub(crate) fn fingerprint(&self) -> String {
        format!("{}\\\"", self.source_hex)
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
    let _written: u64 = ctx.schedule_activity_with_retry_typed("WriteManifest", &job.bare(), patience()).await?;
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
        self.copied += other.copied;
        self.unreadable += other.unreadable;
        self.first_unreadable.extend(other.first_unreadable);
        self.first_unreadable.truncate(UNREADABLE_SHOWN);
    }
}
