//! The activities: each may be run twice, and finds then what it has done.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use outlast::ActivityContext;
use walkdir::WalkDir;

use crate::entry::{Entry, Kind, from_hex, to_hex};
use crate::job::{Backup, Batch, Planned, Progress};
use crate::objects;

/// Entries of one batch.
const BATCH: usize = 64;
/// A file that cannot be read is tried so often within its batch.
const READS: u32 = 3;
const READ_PAUSE: Duration = Duration::from_millis(50);

/// The places of one backup.
struct Places {
    source: PathBuf,
    destination: PathBuf,
    /// Plan and finished batches.
    work: PathBuf,
}

impl Places {
    fn of(job: &Backup) -> anyhow::Result<Self> {
        let path = |hex: &str| anyhow::Ok(PathBuf::from(OsStr::from_bytes(&from_hex(hex)?)));
        let (source, destination) = (path(&job.source_hex)?, path(&job.destination_hex)?);
        let work = destination.join(".backup").join(job.generation.to_string());
        Ok(Self { source, destination, work })
    }

    fn plan(&self) -> PathBuf {
        self.work.join("plan.jsonl")
    }

    fn batch(&self, number: u64) -> PathBuf {
        self.work.join(format!("batch-{number:08}.jsonl"))
    }
}

/// Walks the source and writes down what there is.
pub(crate) async fn plan(_: ActivityContext, job: Backup) -> Result<Planned, String> {
    blocking(move || {
        let places = Places::of(&job)?;
        fs::create_dir_all(&places.work)?;
        if !places.plan().exists() {
            let walk = WalkDir::new(&places.source).min_depth(1).sort_by_file_name();
            let entries = walk.into_iter().map(|found| planned(&places.source, found));
            write_lines(&places.plan(), entries)?;
        }
        let entries = read_lines(&places.plan())?;
        let files = entries.iter().filter(|entry| entry.kind == Kind::File).count() as u64;
        Ok(Planned { files, batches: entries.len().div_ceil(BATCH) as u64 })
    })
    .await
}

fn planned(source: &Path, found: walkdir::Result<walkdir::DirEntry>) -> Entry {
    let relative = |path: &Path| path.strip_prefix(source).unwrap_or(path).to_owned();
    match found {
        Ok(found) => {
            let kind = match found.file_type() {
                kind if kind.is_file() => Kind::File,
                kind if kind.is_dir() => Kind::Directory,
                kind if kind.is_symlink() => Kind::Link,
                _ => Kind::Other,
            };
            Entry::at(&relative(found.path()), kind)
        }
        Err(error) => {
            let path = error.path().map(relative).unwrap_or_default();
            Entry { error: Some(error.to_string()), ..Entry::at(&path, Kind::Other) }
        }
    }
}

/// Copies the files of one batch and writes down what became of each.
pub(crate) async fn copy_batch(ctx: ActivityContext, batch: Batch) -> Result<Progress, String> {
    blocking(move || {
        let places = Places::of(&batch.job)?;
        let done = places.batch(batch.number);
        if !done.exists() {
            let temporary = done.with_extension("object");
            let mut entries = Vec::new();
            let mut copied = 0;
            for entry in read_some(&places.plan(), batch.number as usize * BATCH, BATCH)? {
                anyhow::ensure!(!ctx.is_cancelled(), "cancelled");
                let (entry, new) = copy_patiently(&places, entry, &temporary);
                copied += u64::from(new);
                entries.push(entry);
            }
            note_copies(&places, batch.number, copied)?;
            write_lines(&done, entries.into_iter())?;
        }
        summary(&places, batch.number)
    })
    .await
}

fn copy_patiently(places: &Places, entry: Entry, temporary: &Path) -> (Entry, bool) {
    for _ in 1..READS {
        if let Ok(done) = copy(places, entry.clone(), temporary) {
            return done;
        }
        std::thread::sleep(READ_PAUSE);
    }
    match copy(places, entry.clone(), temporary) {
        Ok(done) => done,
        Err(error) => (Entry { error: Some(format!("{error:#}")), ..entry }, false),
    }
}

/// The finished entry, and whether an object was written for it.
fn copy(places: &Places, entry: Entry, temporary: &Path) -> anyhow::Result<(Entry, bool)> {
    if entry.error.is_some() {
        return Ok((entry, false));
    }
    let path = places.source.join(entry.real_path()?);
    let meta = fs::symlink_metadata(&path)?;
    let mtime_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    let entry = Entry { mode: meta.mode() & 0o7777, mtime_ns, ..entry };
    match entry.kind {
        Kind::File => {
            anyhow::ensure!(meta.is_file(), "it is no file any more");
            let stored = objects::store(&places.destination, &path, temporary)?;
            Ok((Entry { size: stored.size, digest: Some(stored.digest), ..entry }, stored.copied))
        }
        Kind::Link => {
            let target = fs::read_link(&path)?;
            Ok((Entry { target_hex: Some(to_hex(target.as_os_str().as_bytes())), ..entry }, false))
        }
        Kind::Directory => Ok((entry, false)),
        Kind::Other => anyhow::bail!("neither file, directory nor link: not in the backup"),
    }
}

/// How many objects a batch wrote, so that a batch that is found done still knows.
fn note_copies(places: &Places, number: u64, copied: u64) -> anyhow::Result<()> {
    fs::write(places.batch(number).with_extension("copied"), copied.to_string())?;
    Ok(())
}

fn summary(places: &Places, number: u64) -> anyhow::Result<Progress> {
    let copied = fs::read_to_string(places.batch(number).with_extension("copied"))?.parse()?;
    let mut progress = Progress { copied, ..Progress::default() };
    for entry in read_lines(&places.batch(number))? {
        if entry.error.is_some() {
            progress.unreadable += 1;
            progress.first_unreadable.push(entry.path);
        } else if entry.kind == Kind::File {
            progress.done += 1;
            progress.bytes += entry.size;
        }
    }
    Ok(progress)
}

/// Puts all batches together.
pub(crate) async fn write_manifest(_: ActivityContext, job: Backup) -> Result<u64, String> {
    blocking(move || {
        let places = Places::of(&job)?;
        let batches = job.batches.context("the plan comes before the manifest")?;
        let mut entries = Vec::new();
        for number in 0..batches {
            entries.extend(read_lines(&places.batch(number))?);
        }
        let count = entries.len() as u64;
        write_lines(&places.destination.join("manifest.jsonl"), entries.into_iter())?;
        Ok(count)
    })
    .await
}

pub(crate) fn read_lines(path: &Path) -> anyhow::Result<Vec<Entry>> {
    read_some(path, 0, usize::MAX)
}

/// Some lines of a file; those before are passed over without a look.
fn read_some(path: &Path, first: usize, count: usize) -> anyhow::Result<Vec<Entry>> {
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    BufReader::new(file).lines().skip(first).take(count).map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

/// Writes a file as a whole or not at all.
fn write_lines(path: &Path, entries: impl Iterator<Item = Entry>) -> anyhow::Result<()> {
    let temporary = path.with_extension("writing");
    let mut file = BufWriter::new(File::create(&temporary)?);
    for entry in entries {
        serde_json::to_writer(&mut file, &entry)?;
        file.write_all(b"\n")?;
    }
    file.into_inner()?.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().context("a file lies in a directory")?)?.sync_all()?;
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| format!("{error:#}"))
}
