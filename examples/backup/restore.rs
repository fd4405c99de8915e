//! Bringing a backup back.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::BufWriter;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};

use crate::entry::{Entry, Kind, from_hex};
use crate::objects;
use crate::places::{manifest_of, read_lines};

/// What a restore has done.
#[derive(Default)]
pub(crate) struct Restored {
    /// Entries that were made.
    pub(crate) made: usize,
    /// Those that were not, with the reason.
    pub(crate) failed: Vec<String>,
    /// Those that the backup does not hold, or not in full, with the reason.
    pub(crate) missing: Vec<String>,
}

/// Writes the tree of the manifest into `target`, which must be new or empty. What cannot be restored is passed over.
pub(crate) fn restore(backup: &Path, target: &Path) -> anyhow::Result<Restored> {
    let manifest = manifest_of(backup);
    ensure!(manifest.exists(), "{} has no manifest.jsonl: it holds no finished backup", backup.display());
    fs::create_dir_all(target).with_context(|| format!("{} cannot be created", target.display()))?;
    let empty = fs::read_dir(target)?.next().is_none();
    ensure!(empty, "{} is not empty: choose a new directory", target.display());
    let mut entries = read_lines(&manifest)?;
    let missing = entries.iter().filter_map(|entry| entry.error.as_ref().map(|why| format!("{}: {why}", entry.path)));
    let mut restored = Restored { missing: missing.collect(), ..Restored::default() };
    entries.retain(Entry::can_be_restored);
    let mut directories = Vec::new();
    let (links, others): (Vec<&Entry>, Vec<&Entry>) = entries.iter().partition(|entry| entry.kind == Kind::Link);
    // Links last, so that no path of the manifest leads through one of them and out of the target.
    for entry in others.into_iter().chain(links) {
        match restore_entry(backup, entry, target) {
            Ok(()) if entry.kind == Kind::Directory => directories.push(entry),
            Ok(()) => restored.made += 1,
            Err(error) => restored.fail(entry, &error),
        }
    }
    // Directories are finished innermost first: writing into one changes its time, and it may forbid writing.
    for entry in directories.into_iter().rev() {
        let finished = safe_path(target, entry).and_then(|path| finish(&File::open(path)?, entry));
        match finished {
            Ok(()) => restored.made += 1,
            Err(error) => restored.fail(entry, &error),
        }
    }
    Ok(restored)
}

impl Restored {
    fn fail(&mut self, entry: &Entry, error: &anyhow::Error) {
        self.failed.push(format!("{}: {error:#}", entry.path));
    }
}

fn restore_entry(backup: &Path, entry: &Entry, target: &Path) -> anyhow::Result<()> {
    let path = safe_path(target, entry)?;
    match entry.kind {
        Kind::Directory => Ok(fs::create_dir_all(&path)?),
        Kind::File => restore_file(backup, entry, &path),
        Kind::Link => restore_link(entry, &path),
        Kind::Other => Ok(()),
    }
}

/// A manifest must not lead outside of the target.
fn safe_path(target: &Path, entry: &Entry) -> anyhow::Result<PathBuf> {
    let relative = entry.real_path()?;
    let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(inside, "the manifest has the path {:?}, which leads out of the target", entry.path);
    Ok(target.join(relative))
}

fn restore_file(backup: &Path, entry: &Entry, path: &Path) -> anyhow::Result<()> {
    let digest = entry.digest.as_deref().context("a file has a digest")?;
    let mut file = BufWriter::new(File::create_new(path)?);
    let fetched = objects::fetch(backup, digest, &mut file).and_then(|()| finish(&file.into_inner()?, entry));
    if fetched.is_err() {
        // Better no file than one with a wrong content.
        fs::remove_file(path)?;
    }
    fetched
}

fn restore_link(entry: &Entry, path: &Path) -> anyhow::Result<()> {
    let hex = entry.target_hex.as_deref().context("a link has a target")?;
    symlink(OsStr::from_bytes(&from_hex(hex)?), path)?;
    let modified = Timespec {
        tv_sec: entry.mtime_ns.div_euclid(1_000_000_000),
        tv_nsec: entry.mtime_ns.rem_euclid(1_000_000_000) as _,
    };
    let times = Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: modified };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn finish(file: &File, entry: &Entry) -> anyhow::Result<()> {
    file.set_permissions(Permissions::from_mode(entry.mode))?;
    let offset = Duration::from_nanos(entry.mtime_ns.unsigned_abs());
    let modified = if entry.mtime_ns >= 0 { SystemTime::UNIX_EPOCH + offset } else { SystemTime::UNIX_EPOCH - offset };
    file.set_times(FileTimes::new().set_modified(modified))?;
    Ok(())
}
