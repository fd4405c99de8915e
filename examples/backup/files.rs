//! The activities that copy: each may be run twice, and finds then what it has done.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use outlast::ActivityContext;

use crate::entry::{Entry, Kind, to_hex};
use crate::job::{Backup, Batch, Progress, Written};
use crate::objects::{Failure, Objects};
use crate::places::{Places, manifest_of, note_source, read_lines, read_some, write_lines};

/// Entries of one batch.
pub(crate) const BATCH: usize = 64;
/// A file that cannot be read is tried so often within its batch.
const READS: u32 = 3;
const READ_PAUSE: Duration = Duration::from_millis(50);

/// What copies the entries of one batch.
struct Copier {
    objects: Arc<Objects>,
    places: Places,
    number: u64,
    temporary: PathBuf,
}

/// Copies the files of one batch and writes down what became of each.
pub(crate) async fn copy_batch(objects: Arc<Objects>, ctx: ActivityContext, batch: Batch) -> Result<Progress, String> {
    blocking(move || {
        let places = Places::of(objects.backup(), &batch.job)?;
        let done = places.batch(batch.number);
        if !done.exists() {
            let planned = read_some(&places.plan(), batch.number as usize * BATCH, BATCH)?;
            let copier = Copier { objects, places, number: batch.number, temporary: done.with_extension("object") };
            let mut entries = Vec::new();
            for entry in planned {
                ensure!(!ctx.is_cancelled(), "cancelled");
                entries.push(copier.copy_patiently(entry)?);
            }
            write_lines(&done, entries.into_iter().map(Ok))?;
        }
        Ok(summary(read_lines(&done)?))
    })
    .await
}

impl Copier {
    /// The finished entry; it tells why when it could not be read. An error is one of the destination.
    fn copy_patiently(&self, entry: Entry) -> anyhow::Result<Entry> {
        let mut reads = 1;
        loop {
            let error = match self.copy(entry.clone()) {
                Ok(done) => return Ok(done),
                Err(Failure::Destination(error)) => return Err(error),
                Err(Failure::Source(error)) => error,
            };
            ensure!(self.places.source.is_dir(), "the source {} is not there any more", self.places.source.display());
            if is_vanished(&error) {
                let text = "vanished after the backup had begun".to_owned();
                return Ok(Entry { error: Some(text), vanished: true, ..entry });
            }
            if reads == READS {
                return Ok(Entry { error: Some(error.to_string()), ..entry });
            }
            reads += 1;
            std::thread::sleep(READ_PAUSE);
        }
    }

    fn copy(&self, entry: Entry) -> Result<Entry, Failure> {
        let unread = |text: &str| Failure::Source(io::Error::other(text));
        if entry.error.is_some() && entry.kind != Kind::Directory {
            return Ok(entry);
        }
        let path = self.places.source.join(entry.real_path()?);
        let meta = fs::symlink_metadata(&path).map_err(Failure::Source)?;
        let mtime_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
        let entry = Entry { mode: meta.mode() & 0o7777, mtime_ns, ..entry };
        match entry.kind {
            Kind::File if !meta.is_file() => Err(unread("it is no file any more")),
            Kind::File => {
                let announce = |digest: &str, need| self.places.announce(self.number, (digest, need));
                let stored = self.objects.store(&path, &self.temporary, announce)?;
                Ok(Entry { size: stored.size, digest: Some(stored.digest), ..entry })
            }
            Kind::Link => {
                let target = fs::read_link(&path).map_err(Failure::Source)?;
                Ok(Entry { target_hex: Some(to_hex(target.as_os_str().as_bytes())), ..entry })
            }
            Kind::Directory if !meta.is_dir() => Err(unread("it is no directory any more")),
            Kind::Directory => Ok(entry),
            Kind::Other => {
                let text = "neither file, directory nor link: not in the backup".to_owned();
                Ok(Entry { error: Some(text), ..entry })
            }
        }
    }
}

fn is_vanished(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn summary(entries: Vec<Entry>) -> Progress {
    let mut progress = Progress::default();
    for entry in entries {
        if entry.vanished {
            progress.vanished += 1;
            progress.first_missing.push(format!("vanished: {}", entry.path));
        } else if entry.error.is_some() {
            progress.unreadable += 1;
            progress.first_missing.push(format!("unreadable: {}", entry.path));
        } else if entry.kind == Kind::File {
            progress.done += 1;
            progress.bytes += entry.size;
        }
    }
    progress
}

/// Puts all batches together; returns which objects this backup has written.
pub(crate) async fn write_manifest(objects: Arc<Objects>, _: ActivityContext, job: Backup) -> Result<Written, String> {
    blocking(move || {
        let places = Places::of(objects.backup(), &job)?;
        let batches = job.batches.context("the plan comes before the manifest")?;
        let entries = (0..batches).flat_map(|number| match read_lines(&places.batch(number)) {
            Ok(entries) => entries.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        });
        note_source(&places.destination, &places.source)?;
        write_lines(&manifest_of(&places.destination), entries)?;
        places.written(batches)
    })
    .await
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| format!("{error:#}"))
}
