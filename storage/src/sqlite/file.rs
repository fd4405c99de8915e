//! Which file a database is: the same one under all of its names, and only as long as it lies where it was opened.
//!
//! SQLite keeps its log and its shared index beside the name by which the file was opened. Under two names at once (a hard link, or
//! a file that was moved meanwhile) each process would have a log of its own, and commits would be lost.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Error;
use outlast_core::Reason;

/// How long another process may take between opening the file and making the index of SQLite, which it does at once; and
/// the pause between two looks.
const INDEX_WAIT: Duration = Duration::from_secs(3);
const INDEX_LOOK: Duration = Duration::from_millis(20);

/// A file, however it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileId(#[cfg(unix)] (u64, u64), #[cfg(not(unix))] PathBuf);

impl FileId {
    /// The file that a path leads to; `None` when it leads to none.
    pub fn of(path: &Path) -> Option<Self> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let found = std::fs::metadata(path).ok()?;
            Some(Self((found.dev(), found.ino())))
        }
        #[cfg(not(unix))]
        std::fs::canonicalize(path).ok().map(Self)
    }
}

/// A database file that is open.
pub(super) struct DatabaseFile {
    /// Without symbolic links, so that neither they nor another working directory lead elsewhere.
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    /// Locked in common with all processes that have it open. It is closed after the last connection: closing any handle of a file
    /// takes SQLite's own locks on it away from this process.
    handle: File,
}

impl DatabaseFile {
    /// Makes the file if there is none.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |why: Reason| {
            let text = format!("database {} cannot be opened: {why}", path.display());
            Error::unusable(why.reworded(text))
        };
        let found = std::fs::metadata(path);
        if found.as_ref().is_ok_and(|found| !found.is_file()) {
            return Err(failed("it is not a file, choose another path".into()));
        }
        let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let open = open.map_err(|error| failed(Reason::of(error)))?;
        let canonical = std::fs::canonicalize(path).map_err(|error| failed(Reason::of(error)))?;
        let id = FileId::of(&canonical).ok_or_else(|| failed("it has just been removed".into()))?;
        let file = Self { path: canonical, id, handle: open };
        file.share().map_err(|error| failed(Reason::of(error)))?;
        Ok(file)
    }

    /// Whether the path still leads to the file that was opened.
    pub(super) fn is_in_place(&self) -> bool {
        FileId::of(&self.path).as_ref() == Some(&self.id)
    }

    /// What became of the file, and what to do.
    pub(super) fn lost(&self) -> Error {
        Error::unusable(format!(
            "the database {} was moved, removed or replaced while it was open: move it back, or start this process again for what \
             lies there now",
            self.path.display()
        ))
    }

    /// Joins the processes that have the file open, all by the same name.
    fn share(&self) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            let alone = match self.handle.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(error)) => {
                    tracing::debug!(target: super::TARGET, %error, "this file system has no locks, so nobody else is seen");
                    return Ok(());
                }
            };
            // From alone to shared is one step for nobody but us: another process may come in between, and finds no index yet.
            let shared = self.handle.try_lock_shared().is_ok();
            if shared && (alone || self.index().exists()) {
                return Ok(());
            }
            if begun.elapsed() > INDEX_WAIT {
                return Err(Error::unusable(
                    "the file is open under another name (a hard link, or it was moved meanwhile), and SQLite would lose what is \
                     written under one of them: use the same name in every process",
                ));
            }
            // Two that wait must not see each other.
            let _unlocked = self.handle.unlock();
            std::thread::sleep(INDEX_LOOK);
        }
    }

    /// What SQLite keeps beside the name by which the file is open.
    fn index(&self) -> PathBuf {
        beside(&self.path, "-shm")
    }
}

/// A file beside another, with this at the end of its name.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}
