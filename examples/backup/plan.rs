//! The first activity: walk the source and write down what there is.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use outlast::ActivityContext;
use walkdir::WalkDir;

use crate::entry::{Entry, Kind};
use crate::files::{BATCH, blocking};
use crate::job::{Backup, Planned};
use crate::objects::Objects;
use crate::places::{Places, read_lines, write_lines};

/// Makes the plan, or finds the one that was made: a backup has one plan for its whole life.
pub(crate) async fn plan(objects: Arc<Objects>, _: ActivityContext, job: Backup) -> Result<Planned, String> {
    blocking(move || {
        let places = Places::of(objects.backup(), &job)?;
        fs::create_dir_all(&places.work).with_context(|| format!("{} cannot be created", places.work.display()))?;
        if !places.plan().exists() {
            write_lines(&places.plan(), list(&places.source)?.into_iter().map(Ok))?;
        }
        let entries = read_lines(&places.plan())?;
        let files = entries.iter().filter(|entry| entry.kind == Kind::File).count() as u64;
        Ok(Planned { files, batches: entries.len().div_ceil(BATCH) as u64 })
    })
    .await
}

fn list(source: &Path) -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for found in WalkDir::new(source).min_depth(1).sort_by_file_name() {
        match found {
            Ok(found) => entries.push(Entry::at(relative(source, found.path()), kind_of(found.file_type()))),
            Err(error) => {
                ensure!(error.depth() > 0, "the source cannot be read: {error}");
                note(&mut entries, relative(source, error.path().unwrap_or(source)), error.to_string())?;
            }
        }
    }
    Ok(entries)
}

/// A directory that cannot be listed is found twice: as an entry, and right behind it as an error.
fn note(entries: &mut Vec<Entry>, path: &Path, error: String) -> anyhow::Result<()> {
    match entries.last_mut() {
        Some(last) if last.kind == Kind::Directory && last.real_path()? == path => last.error = Some(error),
        _ => entries.push(Entry { error: Some(error), ..Entry::at(path, Kind::Other) }),
    }
    Ok(())
}

fn relative<'a>(source: &Path, path: &'a Path) -> &'a Path {
    path.strip_prefix(source).unwrap_or(path)
}

fn kind_of(kind: fs::FileType) -> Kind {
    match kind {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_symlink() => Kind::Link,
        _ => Kind::Other,
    }
}
