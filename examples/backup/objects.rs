//! Files by the SHA-256 of their content, compressed by zstd.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};

use crate::entry::to_hex;

const LEVEL: i32 = 3;
const BUFFER: usize = 64 << 10;
/// Objects that are remembered as sound; when there are more, some are looked at again.
const SOUND_MAX: usize = 1 << 20;

/// Why a file is not stored.
pub(crate) enum Failure {
    /// The file cannot be read: others can.
    Source(io::Error),
    /// The store cannot be written: no file can be stored until it can.
    Destination(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Destination(error)
    }
}

/// What became of a file.
pub(crate) struct Stored {
    pub(crate) digest: String,
    pub(crate) size: u64,
}

/// Why an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    New,
    Damaged,
}

/// The objects of a backup, as one run sees them.
pub(crate) struct Objects {
    backup: PathBuf,
    shelf: Mutex<Shelf>,
    released: Condvar,
}

#[derive(Default)]
struct Shelf {
    /// Read back and found right in this run.
    sound: HashSet<String>,
    /// Being looked at or written by one of the batches.
    claimed: HashSet<String>,
}

/// The sole right to write an object that is not there or is damaged.
struct Claim<'a> {
    objects: &'a Objects,
    digest: String,
    need: Need,
}

impl Objects {
    /// What a killed run has left is made durable, because batches will be recorded that rely on it.
    pub(crate) fn open(backup: &Path) -> anyhow::Result<Self> {
        for directory in fs::read_dir(backup.join("objects")).into_iter().flatten() {
            let path = directory?.path();
            sync_directory(&path).with_context(|| format!("{} cannot be used", path.display()))?;
        }
        Ok(Self { backup: backup.to_owned(), shelf: Mutex::default(), released: Condvar::new() })
    }

    pub(crate) fn backup(&self) -> &Path {
        &self.backup
    }

    /// Stores a file's content, unless it is stored. A sound object is never written again; `announce` hears of an object
    /// right before it appears.
    pub(crate) fn store(
        &self,
        file: &Path,
        temporary: &Path,
        announce: impl Fn(&str, Need) -> anyhow::Result<()>,
    ) -> Result<Stored, Failure> {
        let (digest, size) = pass(File::open(file).map_err(Failure::Source)?, &mut io::sink())
            .map_err(|side| Failure::Source(side.into()))?;
        let Some(claim) = self.claim(&digest) else { return Ok(Stored { digest, size }) };
        let (written, size) = compress(file, temporary)?;
        if written == digest {
            claim.publish(temporary, announce)?;
            return Ok(Stored { digest, size });
        }
        // The file has changed since the first pass; what counts is what was written.
        drop(claim);
        match self.claim(&written) {
            Some(claim) => claim.publish(temporary, announce)?,
            None => fs::remove_file(temporary).context("a temporary file cannot be removed")?,
        }
        Ok(Stored { digest: written, size })
    }

    /// The right to write this object, or `None` when it is there and sound. Waits for the batch that writes it now.
    fn claim(&self, digest: &str) -> Option<Claim<'_>> {
        let mut shelf = self.shelf();
        while shelf.claimed.contains(digest) {
            shelf = self.released.wait(shelf).unwrap_or_else(PoisonError::into_inner);
        }
        if shelf.sound.contains(digest) {
            return None;
        }
        shelf.claimed.insert(digest.to_owned());
        drop(shelf);
        let path = path_of(&self.backup, digest);
        let need = if path.exists() { Need::Damaged } else { Need::New };
        let claim = Claim { objects: self, digest: digest.to_owned(), need };
        if need == Need::Damaged && is_sound(&path, digest) {
            claim.found_sound();
            return None;
        }
        Some(claim)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim<'_> {
    /// Puts a finished file into its place.
    fn publish(self, temporary: &Path, announce: impl Fn(&str, Need) -> anyhow::Result<()>) -> anyhow::Result<()> {
        announce(&self.digest, self.need)?;
        let target = path_of(&self.objects.backup, &self.digest);
        let directory = target.parent().context("an object lies in a directory")?;
        let put = || {
            if !directory.is_dir() {
                fs::create_dir_all(directory)?;
                sync_directory(&self.objects.backup.join("objects"))?;
            }
            fs::rename(temporary, &target)?;
            sync_directory(directory)
        };
        put().with_context(|| format!("object {} cannot be written", target.display()))?;
        self.found_sound();
        Ok(())
    }

    fn found_sound(&self) {
        let mut shelf = self.objects.shelf();
        if shelf.sound.len() >= SOUND_MAX {
            shelf.sound.clear();
        }
        shelf.sound.insert(self.digest.clone());
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.objects.shelf().claimed.remove(&self.digest);
        self.objects.released.notify_all();
    }
}

/// Where the object with this digest lies.
pub(crate) fn path_of(backup: &Path, digest: &str) -> PathBuf {
    backup.join("objects").join(&digest[..2]).join(format!("{}.zst", &digest[2..]))
}

/// Writes an object's content to `target` and checks it.
pub(crate) fn fetch(backup: &Path, digest: &str, target: &mut dyn Write) -> anyhow::Result<()> {
    let path = path_of(backup, digest);
    let file = File::open(&path).with_context(|| format!("object {} is missing", path.display()))?;
    let found = match pass(zstd::Decoder::new(file)?, target) {
        Ok((found, _)) => found,
        Err(Side::Read(error)) => return Err(error).context(format!("object {} is damaged", path.display())),
        Err(Side::Write(error)) => return Err(error).context("the target cannot be written"),
    };
    ensure!(found == digest, "object {} is damaged: its content has digest {found}", path.display());
    Ok(())
}

/// What cannot be read counts as damaged: it is written anew.
fn is_sound(path: &Path, digest: &str) -> bool {
    let read = || io::Result::Ok(pass(zstd::Decoder::new(File::open(path)?)?, &mut io::sink())?.0);
    read().is_ok_and(|found| found == digest)
}

/// Compresses a file into a durable temporary one that was read back; returns the digest and the size of what was read.
fn compress(file: &Path, temporary: &Path) -> Result<(String, u64), Failure> {
    let name = || format!("{} cannot be written", temporary.display());
    let source = File::open(file).map_err(Failure::Source)?;
    let target = File::create(temporary).with_context(name)?;
    let mut encoder = zstd::Encoder::new(target, LEVEL).with_context(name)?;
    let (digest, size) = match pass(source, &mut encoder) {
        Ok(read) => read,
        Err(Side::Read(error)) => return Err(Failure::Source(error)),
        Err(Side::Write(error)) => return Err(Failure::Destination(anyhow::Error::new(error).context(name()))),
    };
    let finish = || encoder.finish()?.sync_data();
    finish().with_context(name)?;
    if !is_sound(temporary, &digest) {
        let text = format!("the stored copy of {} does not read back as it was written", file.display());
        return Err(Failure::Destination(anyhow::Error::msg(text)));
    }
    Ok((digest, size))
}

pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// On which side of a copy an error lies.
enum Side {
    Read(io::Error),
    Write(io::Error),
}

impl From<Side> for io::Error {
    fn from(side: Side) -> Self {
        match side {
            Side::Read(error) | Side::Write(error) => error,
        }
    }
}

/// Copies all of `from` into `to`; returns the digest and the size of what went by.
fn pass(mut from: impl Read, to: &mut dyn Write) -> Result<(String, u64), Side> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut size = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok((to_hex(&hasher.finalize()), size)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Side::Read(error)),
        };
        hasher.update(&buffer[..count]);
        to.write_all(&buffer[..count]).map_err(Side::Write)?;
        size += count as u64;
    }
}
