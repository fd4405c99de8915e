//! Where plan, batches and manifest lie, and how their lines are read and written.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::entry::Entry;
use crate::job::{Backup, Written};
use crate::objects::{self, Need, path_of};

/// The file beside the manifest that says whose it is.
const SOURCE: &str = "source";

/// The places of one backup.
pub(crate) struct Places {
    pub(crate) source: PathBuf,
    pub(crate) destination: PathBuf,
    /// Plan and finished batches.
    pub(crate) work: PathBuf,
}

impl Places {
    pub(crate) fn of(destination: &Path, job: &Backup) -> anyhow::Result<Self> {
        let work = work_of(destination).join(job.generation.to_string());
        Ok(Self { source: job.source()?, destination: destination.to_owned(), work })
    }

    pub(crate) fn plan(&self) -> PathBuf {
        self.work.join("plan.jsonl")
    }

    pub(crate) fn batch(&self, number: u64) -> PathBuf {
        self.work.join(format!("batch-{number:08}.jsonl"))
    }

    /// Notes that a batch is about to put an object into its place. A batch that is killed behind this finds the object
    /// when it is done again, and still knows by this line that it is one of this backup's.
    pub(crate) fn announce(&self, number: u64, (digest, need): (&str, Need)) -> anyhow::Result<()> {
        let path = self.announced(number);
        let word = match need {
            Need::New => "new",
            Need::Damaged => "damaged",
        };
        let append = || {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.write_all(format!("{word} {digest}\n").as_bytes())
        };
        append().with_context(|| format!("{} cannot be written", path.display()))
    }

    /// Counts what was announced and is there, each object once.
    pub(crate) fn written(&self, batches: u64) -> anyhow::Result<Written> {
        let (mut objects, mut damaged) = (BTreeSet::new(), BTreeSet::new());
        for number in 0..batches {
            let text = match fs::read_to_string(self.announced(number)) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            for (word, digest) in text.lines().filter_map(|line| line.split_once(' ')) {
                if digest.len() == 64 && path_of(&self.destination, digest).exists() {
                    objects.insert(digest.to_owned());
                    if word == "damaged" {
                        damaged.insert(digest.to_owned());
                    }
                }
            }
        }
        Ok(Written { objects: objects.len() as u64, damaged: damaged.len() as u64 })
    }

    fn announced(&self, number: u64) -> PathBuf {
        self.work.join(format!("batch-{number:08}.objects"))
    }
}

/// What a finished backup holds, one line for each entry.
pub(crate) fn manifest_of(destination: &Path) -> PathBuf {
    destination.join("manifest.jsonl")
}

/// The source of the manifest, as the bytes of its path; `None` when there is no note of it.
pub(crate) fn noted_source(destination: &Path) -> anyhow::Result<Option<PathBuf>> {
    let path = destination.join(SOURCE);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(PathBuf::from(OsString::from_vec(bytes)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
}

/// Notes whose manifest follows.
pub(crate) fn note_source(destination: &Path, source: &Path) -> anyhow::Result<()> {
    let path = destination.join(SOURCE);
    write_whole(&path, |file| Ok(file.write_all(source.as_os_str().as_bytes())?))
}

/// The state of a backup that is not done, and the state database.
pub(crate) fn work_of(destination: &Path) -> PathBuf {
    destination.join(".backup")
}

/// Removes the plans and batches of backups that have ended.
pub(crate) fn clear(destination: &Path) -> io::Result<()> {
    for found in fs::read_dir(work_of(destination))? {
        let found = found?;
        let is_generation = found.file_name().to_str().is_some_and(|name| name.parse::<u64>().is_ok());
        if is_generation && found.file_type()?.is_dir() {
            fs::remove_dir_all(found.path())?;
        }
    }
    Ok(())
}

pub(crate) fn read_lines(path: &Path) -> anyhow::Result<Vec<Entry>> {
    read_some(path, 0, usize::MAX)
}

/// Some lines of a file; those before are passed over without a look.
pub(crate) fn read_some(path: &Path, first: usize, count: usize) -> anyhow::Result<Vec<Entry>> {
    let read = || -> anyhow::Result<Vec<Entry>> {
        let lines = BufReader::new(File::open(path)?).lines();
        lines.skip(first).take(count).map(|line| Ok(serde_json::from_str(&line?)?)).collect()
    };
    read().with_context(|| format!("{} cannot be read", path.display()))
}

/// Writes a file as a whole or not at all.
pub(crate) fn write_lines(path: &Path, entries: impl Iterator<Item = anyhow::Result<Entry>>) -> anyhow::Result<()> {
    write_whole(path, |file| {
        for entry in entries {
            serde_json::to_writer(&mut *file, &entry?)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })
}

fn write_whole(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let temporary = path.with_extension("writing");
    let write = || {
        let mut file = BufWriter::new(File::create(&temporary)?);
        fill(&mut file)?;
        file.into_inner()?.sync_all()?;
        fs::rename(&temporary, path)?;
        objects::sync_directory(path.parent().context("a file lies in a directory")?)?;
        anyhow::Ok(())
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}
