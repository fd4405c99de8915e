//! Files by the SHA-256 of their content, compressed by zstd.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};

use crate::entry::to_hex;

const LEVEL: i32 = 3;
const BUFFER: usize = 256 << 10;

/// What became of a file.
pub(crate) struct Stored {
    pub(crate) digest: String,
    pub(crate) size: u64,
    /// Whether an object was written; `false` when the content was there.
    pub(crate) copied: bool,
}

/// Where the object with this digest lies.
pub(crate) fn path_of(backup: &Path, digest: &str) -> PathBuf {
    backup.join("objects").join(&digest[..2]).join(format!("{}.zst", &digest[2..]))
}

/// Stores a file's content, unless it is stored. A finished object is never written again.
pub(crate) fn store(backup: &Path, file: &Path, temporary: &Path) -> anyhow::Result<Stored> {
    let (digest, size) = pass(File::open(file)?, &mut io::sink())?;
    if path_of(backup, &digest).exists() {
        return Ok(Stored { digest, size, copied: false });
    }
    let mut encoder = zstd::Encoder::new(File::create(temporary)?, LEVEL)?;
    // The file may have changed since the first pass; what counts is what was written.
    let (digest, size) = pass(File::open(file)?, &mut encoder)?;
    let written = encoder.finish()?;
    written.sync_data()?;
    let (verified, _) = pass(zstd::Decoder::new(File::open(temporary)?)?, &mut io::sink())?;
    ensure!(verified == digest, "the stored copy of {} does not read back as it was written", file.display());
    let target = path_of(backup, &digest);
    let directory = target.parent().context("an object lies in a directory")?;
    std::fs::create_dir_all(directory)?;
    std::fs::rename(temporary, &target)?;
    File::open(directory)?.sync_all()?;
    Ok(Stored { digest, size, copied: true })
}

/// Writes an object's content to `target` and checks it.
pub(crate) fn fetch(backup: &Path, digest: &str, target: &mut dyn Write) -> anyhow::Result<()> {
    let path = path_of(backup, digest);
    let file = File::open(&path).with_context(|| format!("object {} is missing", path.display()))?;
    let (found, _) = pass(zstd::Decoder::new(file)?, target)?;
    ensure!(found == digest, "object {} is damaged: its content has digest {found}", path.display());
    Ok(())
}

/// Copies all of `from` into `to`; returns the digest and the size of what went by.
fn pass(mut from: impl Read, to: &mut dyn Write) -> io::Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut size = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok((to_hex(&hasher.finalize()), size)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
        size += count as u64;
    }
}
