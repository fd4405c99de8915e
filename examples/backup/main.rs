//! A durable backup of a directory into a content-addressed, compressed store.
//!
//! `backup SRC DST` goes on where it was when it is started again after a crash; `backup --restore DST TARGET` brings the
//! tree back, byte for byte.

mod entry;
mod files;
mod job;
mod objects;
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
    ActivityRegistry, Client, ObservabilityConfig, OrchestrationRegistry, OrchestrationStatus, RuntimeOptions,
};

use job::{Backup, Progress};

/// Exit code of a backup that is complete but for entries that could not be read.
const WITH_UNREADABLE: u8 = 3;

/// Back up SRC into DST, or bring a backup back.
#[derive(Parser)]
struct Arguments {
    /// Bring the backup in FROM back into the new or empty directory TO.
    #[arg(long)]
    restore: bool,
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
    let result = if arguments.restore {
        restore::restore(&arguments.from, &arguments.to).map(|count| {
            println!("restored {count} entries into {}", arguments.to.display());
            0
        })
    } else {
        back_up(&arguments.from, &arguments.to).await
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("backup failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn back_up(source: &Path, destination: &Path) -> anyhow::Result<u8> {
    let source = source.canonicalize().with_context(|| format!("{} cannot be read", source.display()))?;
    ensure!(source.is_dir(), "{} is not a directory", source.display());
    std::fs::create_dir_all(destination).with_context(|| format!("{} cannot be created", destination.display()))?;
    let destination = destination.canonicalize()?;
    ensure!(
        !destination.starts_with(&source),
        "{} lies inside of {}: choose another place",
        destination.display(),
        source.display()
    );
    ensure!(
        !source.starts_with(&destination),
        "{} lies inside of {}: choose another place",
        source.display(),
        destination.display()
    );
    let work = destination.join(".backup");
    std::fs::create_dir_all(&work)?;

    let provider =
        Arc::new(SqliteProvider::new(&format!("sqlite:{}", work.join("state.sqlite").display()), None).await?);
    let runtime = start(provider.clone()).await?;
    let client = Client::new(provider);
    let (instance, job) = next_job(&client, &source, &destination).await?;
    client.start_orchestration_typed(&instance, "Backup", &job).await?;
    let outcome = watch(&client, &instance).await;
    runtime.shutdown(Some(10_000)).await;
    report(outcome?)
}

async fn start(provider: Arc<SqliteProvider>) -> anyhow::Result<Arc<Runtime>> {
    let activities = ActivityRegistry::builder()
        .register_typed("Plan", files::plan)
        .register_typed("CopyBatch", files::copy_batch)
        .register_typed("WriteManifest", files::write_manifest)
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
        let job = Backup::new(source, destination, generation)?;
        match client.get_orchestration_status(&instance).await? {
            OrchestrationStatus::NotFound => return Ok((instance, job)),
            OrchestrationStatus::Running { .. } => {
                let history = client.read_execution_history(&instance, 1).await?;
                let same = history.first().is_none_or(|event| format!("{:?}", event.kind).contains(&job.fingerprint()));
                ensure!(
                    same,
                    "{} holds an unfinished backup of another directory: finish that one first",
                    destination.display()
                );
                return Ok((instance, job));
            }
            OrchestrationStatus::Completed { .. } | OrchestrationStatus::Failed { .. } => {}
        }
    }
    bail!("no generation is free")
}

/// Shows progress until the backup has ended.
async fn watch(client: &Client, instance: &str) -> anyhow::Result<Progress> {
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
                return Ok(serde_json::from_str(&output)?);
            }
            OrchestrationStatus::Failed { details, .. } => bail!("{}", details.display_message()),
            OrchestrationStatus::NotFound => bail!("the instance {instance} is gone"),
        }
    }
}

fn report(done: Progress) -> anyhow::Result<u8> {
    println!(
        "{} files, {} bytes, {} objects written, {} unreadable",
        done.done, done.bytes, done.copied, done.unreadable
    );
    for path in &done.first_unreadable {
        eprintln!("unreadable: {path}");
    }
    let more = done.unreadable.saturating_sub(done.first_unreadable.len() as u64);
    if more > 0 {
        eprintln!("and {more} more; the manifest names them all");
    }
    Ok(if done.unreadable > 0 { WITH_UNREADABLE } else { 0 })
}
