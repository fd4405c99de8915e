//! Choosing the place of a backup: refused before anything is made there.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail, ensure};
use outlast::{Client, OrchestrationStatus};

use crate::places::{manifest_of, noted_source, work_of};

/// Makes the directory of the backup, unless it lies in the source or the source in it.
pub(crate) fn prepare(source: &Path, destination: &Path) -> anyhow::Result<PathBuf> {
    let destination = resolve(destination)?;
    for (inner, outer) in [(destination.as_path(), source), (source, destination.as_path())] {
        let (inside, of) = (inner.display(), outer.display());
        ensure!(!inner.starts_with(outer), "{inside} lies inside of {of}: choose another place");
    }
    let name = destination.display();
    ensure!(
        destination.to_str().is_some(),
        "{name} is not UTF-8, which the state database needs: choose another place"
    );
    fs::create_dir_all(work_of(&destination)).with_context(|| format!("the destination {name} cannot be made"))?;
    Ok(destination)
}

/// A manifest is only replaced by one of the same source: whoever mistypes a destination must not lose what it holds.
pub(crate) async fn check_source(client: &Client, source: &Path, destination: &Path) -> anyhow::Result<()> {
    if !manifest_of(destination).exists() {
        return Ok(());
    }
    let noted = match noted_source(destination)? {
        Some(noted) => Some(noted),
        None => last_source(client).await?,
    };
    let whose = match noted {
        Some(noted) if noted == source => return Ok(()),
        Some(noted) => format!("the backup of {}", noted.display()),
        None => "a backup whose source is not known any more".to_owned(),
    };
    bail!(
        "{} holds {whose}: choose another directory for {}, or say --change-source if it is the same tree at a new place",
        destination.display(),
        source.display()
    )
}

/// The source of the last backup that was finished, as far as the state database knows: the first backups noted it nowhere else.
async fn last_source(client: &Client) -> anyhow::Result<Option<PathBuf>> {
    let mut last = None;
    for generation in 1.. {
        let instance = format!("backup-{generation}");
        match client.get_orchestration_status(&instance).await? {
            OrchestrationStatus::NotFound => break,
            OrchestrationStatus::Completed { .. } => {
                if let Some(job) = crate::begun(client, &instance).await? {
                    last = Some(job.source()?);
                }
            }
            OrchestrationStatus::Running { .. } | OrchestrationStatus::Failed { .. } => {}
        }
    }
    Ok(last)
}

/// A path without links that need not exist yet: the real path of its nearest existing ancestor, and the rest.
fn resolve(path: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    for ancestor in absolute.ancestors() {
        let real = match ancestor.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context(format!("the destination {} cannot be used", path.display())),
        };
        let rest: Vec<&OsStr> = absolute.strip_prefix(ancestor)?.components().map(Component::as_os_str).collect();
        ensure!(!rest.contains(&OsStr::new("..")), "{} leads through a directory that is not there", path.display());
        return Ok(real.components().map(Component::as_os_str).chain(rest).collect());
    }
    bail!("the destination {} cannot be found", path.display())
}
