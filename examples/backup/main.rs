//! A durable backup of a directory into a content-addressed, compressed store.
//!
//! `backup SRC DST` goes on where it was when it is started again after a crash; `backup --restore DST TARGET` brings the
//! tree back, byte for byte.

mod destination;
mod entry;
mod files;
mod job;
mod objects;
mod patience;
mod places;
mod plan;
mod restore;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{
    ActivityRegistry, Client, ClientOptions, EventKind, ObservabilityConfig, OrchestrationRegistry,
    OrchestrationStatus, RuntimeOptions,
};

use job::{Backup, Progress};
use objects::Objects;

/// Exit code of a backup that is done but for entries that could not be read or had vanished, and of its restore.
const INCOMPLETE_BACKUP: u8 = 3;
/// Exit code of a restore that is done but for entries that could not be restored.
const INCOMPLETE_RESTORE: u8 = 4;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  not done; standard error says why
  2  the arguments are wrong
  3  backed up, but for the entries that standard error and the manifest name: unreadable, or vanished meanwhile;
     with --restore: all that the backup holds is restored, and those entries are not in it
  4  restored, but for the entries that standard error names: their objects are damaged or missing, or the target
     did not take them";

/// Back up SRC into DST, or bring a backup back.
///
/// A backup that was interrupted goes on where it was when it is started again. A destination that cannot be written is
/// waited for, about twenty seconds. A destination holds the backup of one source.
#[derive(Parser)]
#[command(after_help = EXIT_CODES)]
struct Arguments {
    /// Bring the backup in SRC back into the new or empty directory DST.
    #[arg(long)]
    restore: bool,
    /// Take SRC as the source of the backup in DST from now on, though its manifest is of another one.
    #[arg(long, conflicts_with = "restore")]
    change_source: bool,
    /// The directory to back up; with --restore the backup.
    #[arg(value_name = "SRC")]
    from: PathBuf,
    /// The directory that holds the backup; with --restore the target.
    #[arg(value_name = "DST")]
    to: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = if arguments.restore { bring_back(&arguments.from, &arguments.to) } else { back_up(&arguments).await };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let what = if arguments.restore { "restore" } else { "backup" };
            eprintln!("{what} failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bring_back(backup: &Path, target: &Path) -> anyhow::Result<u8> {
    let restored = restore::restore(backup, target)?;
    println!("restored {} entries into {}", restored.made, target.display());
    for missing in &restored.missing {
        eprintln!("not in the backup: {missing}");
    }
    for failed in &restored.failed {
        eprintln!("not restored: {failed}");
    }
    Ok(match (restored.failed.is_empty(), restored.missing.is_empty()) {
        (false, _) => INCOMPLETE_RESTORE,
        (true, false) => INCOMPLETE_BACKUP,
        (true, true) => 0,
    })
}

async fn back_up(arguments: &Arguments) -> anyhow::Result<u8> {
    let (source, destination) = (&arguments.from, &arguments.to);
    let unreadable = || format!("the source {} cannot be read", source.display());
    let source = source.canonicalize().with_context(unreadable)?;
    std::fs::read_dir(&source).with_context(unreadable)?;
    let destination = destination::prepare(&source, destination)?;

    let database = places::work_of(&destination).join("state.sqlite");
    let database = database.to_str().context("the destination is UTF-8")?;
    let provider = Arc::new(SqliteProvider::new(database, None).await?);
    let options = ClientOptions { call_timeout: patience::LONGEST, ..ClientOptions::default() };
    let client = Client::with_options(provider.clone(), options);
    let (instance, job) = next_job(&client, &source, &destination).await?;
    if !arguments.change_source {
        destination::check_source(&client, &source, &destination).await?;
    }
    let runtime = start(provider, Objects::open(&destination)?).await?;
    client.start_orchestration_typed(&instance, "Backup", &job).await?;
    let ended = tokio::select! {
        ended = watch(&client, &instance) => ended,
        () = patience::run_out(&runtime) => {
            // Nothing of it can be written down any more, so nothing is waited for.
            runtime.shutdown(Some(0)).await;
            bail!(
                "nothing could be written to {} for {} s: make room there, or make it writable, and start again; \
                 the backup goes on where it was",
                destination.display(),
                patience::LONGEST.as_secs()
            );
        }
    };
    runtime.shutdown(Some(10_000)).await;
    let ended = ended?;
    if let Err(error) = places::clear(&destination) {
        eprintln!("working files in {} cannot be removed: {error}", places::work_of(&destination).display());
    }
    match ended {
        Ok(done) => Ok(report(&done)),
        Err(reason) => bail!(reason),
    }
}

async fn start(provider: Arc<SqliteProvider>, objects: Objects) -> anyhow::Result<Arc<Runtime>> {
    let objects = Arc::new(objects);
    let (planning, copying, listing) = (objects.clone(), objects.clone(), objects);
    let activities = ActivityRegistry::builder()
        .register_typed("Plan", move |ctx, job| plan::plan(planning.clone(), ctx, job))
        .register_typed("CopyBatch", move |ctx, batch| files::copy_batch(copying.clone(), ctx, batch))
        .register_typed("WriteManifest", move |ctx, job| files::write_manifest(listing.clone(), ctx, job))
        .build();
    let orchestrations = OrchestrationRegistry::builder().register_typed("Backup", job::backup).build();
    let options = RuntimeOptions {
        worker_concurrency: 4,
        observability: ObservabilityConfig { log_level: "error".to_owned(), ..ObservabilityConfig::default() },
        ..RuntimeOptions::default()
    };
    Ok(Runtime::try_start(provider, activities, orchestrations, options).await?)
}

/// The backup that was begun, or a new one when the last has ended. Every backup is an instance of its own.
async fn next_job(client: &Client, source: &Path, destination: &Path) -> anyhow::Result<(String, Backup)> {
    for generation in 1.. {
        let instance = format!("backup-{generation}");
        match client.get_orchestration_status(&instance).await? {
            OrchestrationStatus::NotFound => return Ok((instance, Backup::new(source, generation))),
            OrchestrationStatus::Running { .. } => match begun(client, &instance).await? {
                Some(job) => {
                    let begun = job.source()?;
                    ensure!(
                        begun == source,
                        "{} holds an unfinished backup of {}: finish that one first, or delete {} to give it up \
                         (what it has stored will be used)",
                        destination.display(),
                        begun.display(),
                        places::work_of(destination).display()
                    );
                    return Ok((instance, job));
                }
                None => client.cancel_instance(&instance, "killed before it had begun").await?,
            },
            OrchestrationStatus::Completed { .. } | OrchestrationStatus::Failed { .. } => {}
        }
    }
    bail!("no generation is free")
}

/// What a backup was started with; `None` when it was killed before its first turn.
pub(crate) async fn begun(client: &Client, instance: &str) -> anyhow::Result<Option<Backup>> {
    let history = client.read_execution_history(instance, 1).await?;
    match history.first().map(|event| &event.kind) {
        Some(EventKind::OrchestrationStarted { input, .. }) => {
            Ok(Some(serde_json::from_str(input).context("the state database is of another program")?))
        }
        _ => Ok(None),
    }
}

/// Shows progress until the backup has ended; a backup that has failed says why.
async fn watch(client: &Client, instance: &str) -> anyhow::Result<Result<Progress, String>> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} files, {msg}, {elapsed}")?;
    let bar = ProgressBar::new(0).with_style(style);
    let mut version = 0;
    loop {
        let (poll, patience) = (Duration::from_secs(1), Duration::from_secs(60));
        let status = match client.wait_for_status_change(instance, version, poll, patience).await {
            Err(outlast::ClientError::Timeout) => continue,
            status => status?,
        };
        match status {
            OrchestrationStatus::Running { custom_status, custom_status_version, .. } => {
                version = custom_status_version;
                if let Some(progress) = custom_status.and_then(|text| serde_json::from_str::<Progress>(&text).ok()) {
                    bar.set_length(progress.files);
                    bar.set_position(progress.done);
                    bar.set_message(format!("{} MiB read", progress.bytes >> 20));
                }
            }
            OrchestrationStatus::Completed { output, .. } => {
                bar.finish_and_clear();
                return Ok(Ok(serde_json::from_str(&output)?));
            }
            OrchestrationStatus::Failed { details, .. } => return Ok(Err(details.display_message())),
            OrchestrationStatus::NotFound => bail!("the instance {instance} is gone"),
        }
    }
}

fn report(done: &Progress) -> u8 {
    println!(
        "{} files, {} bytes, {} objects written, {} unreadable, {} vanished",
        done.done, done.bytes, done.written.objects, done.unreadable, done.vanished
    );
    if done.written.damaged > 0 {
        println!("{} of the objects written replace damaged ones: look after the disk", done.written.damaged);
    }
    for missing in &done.first_missing {
        eprintln!("{missing}");
    }
    let missing = done.unreadable + done.vanished;
    let more = missing.saturating_sub(done.first_missing.len() as u64);
    if more > 0 {
        eprintln!("and {more} more; the manifest names them all");
    }
    if missing > 0 { INCOMPLETE_BACKUP } else { 0 }
}
