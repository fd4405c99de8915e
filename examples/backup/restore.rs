//! Bringing a backup back.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::BufWriter;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};

use crate::entry::{Entry, Kind, from_hex};
use crate::files::read_lines;
use crate::objects;

/// Writes the tree of the manifest into `target`, which must be new or empty. Returns how many entries it made.
pub(crate) fn restore(backup: &Path, target: &Path) -> anyhow::Result<usize> {
    let manifest = backup.join("manifest.jsonl");
    ensure!(manifest.exists(), "{} has no manifest.jsonl: it holds no finished backup", backup.display());
    fs::create_dir_all(target).with_context(|| format!("{} cannot be created", target.display()))?;
    let empty = fs::read_dir(target)?.next().is_none();
    ensure!(empty, "{} is not empty: choose a new directory", target.display());
    let entries: Vec<Entry> = read_lines(&manifest)?.into_iter().filter(|entry| entry.error.is_none()).collect();
    for entry in &entries {
        let path = safe_path(target, entry)?;
        match entry.kind {
            Kind::Directory => fs::create_dir_all(&path)?,
            Kind::File => restore_file(backup, entry, &path)?,
            Kind::Link => {
                let hex = entry.target_hex.as_deref().context("a link has a target")?;
                symlink(OsStr::from_bytes(&from_hex(hex)?), &path)?;
            }
            Kind::Other => {}
        }
    }
    // Directories last and innermost first: writing into one changes its time, and it may forbid writing.
    for entry in entries.iter().rev().filter(|entry| entry.kind == Kind::Directory) {
        let path = safe_path(target, entry)?;
        finish(&File::open(&path)?, entry)?;
    }
    Ok(entries.len())
}

/// A manifest must not lead outside of the target.
fn safe_path(target: &Path, entry: &Entry) -> anyhow::Result<std::path::PathBuf> {
    let relative = entry.real_path()?;
    let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(inside, "the manifest has the path {:?}, which leads out of the target", entry.path);
    Ok(target.join(relative))
}

fn restore_file(backup: &Path, entry: &Entry, path: &Path) -> anyhow::Result<()> {
    let digest = entry.digest.as_deref().context("a file has a digest")?;
    let mut file = BufWriter::new(File::create(path)?);
    objects::fetch(backup, digest, &mut file).with_context(|| format!("{} cannot be restored", entry.path))?;
    finish(&file.into_inner()?, entry)
}

fn finish(file: &File, entry: &Entry) -> anyhow::Result<()> {
    file.set_permissions(Permissions::from_mode(entry.mode))?;
    let offset = Duration::from_nanos(entry.mtime_ns.unsigned_abs());
    let modified = if entry.mtime_ns >= 0 { SystemTime::UNIX_EPOCH + offset } else { SystemTime::UNIX_EPOCH - offset };
    file.set_times(FileTimes::new().set_modified(modified))?;
    Ok(())
}
