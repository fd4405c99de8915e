//! One line of a plan or manifest.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    File,
    Directory,
    Link,
    Other,
}

/// An entry of the tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Relative to the source; for people only when `path_hex` is there.
    pub(crate) path: String,
    /// The bytes of a path that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path_hex: Option<String>,
    pub(crate) kind: Kind,
    /// Bytes of a file, as stored.
    pub(crate) size: u64,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Nanoseconds since the Unix epoch.
    pub(crate) mtime_ns: i64,
    /// SHA-256 of a file's content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<String>,
    /// Where a link points, as bytes in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) target_hex: Option<String>,
    /// Why the entry is not in the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// Whether it was there when the plan was made and not any more when its turn came.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) vanished: bool,
}

impl Entry {
    /// An entry of which only the place is known.
    pub(crate) fn at(path: &Path, kind: Kind) -> Self {
        let text = path.to_str();
        Self {
            path: text.map_or_else(|| path.to_string_lossy().into_owned(), str::to_owned),
            path_hex: text.is_none().then(|| to_hex(path.as_os_str().as_bytes())),
            kind,
            size: 0,
            mode: 0,
            mtime_ns: 0,
            digest: None,
            target_hex: None,
            error: None,
            vanished: false,
        }
    }

    /// Also a directory that could not be listed in full, if it was looked at: some of its children may be there.
    pub(crate) fn can_be_restored(&self) -> bool {
        self.error.is_none() || (self.kind == Kind::Directory && self.mtime_ns != 0)
    }

    /// The path as the file system knows it.
    pub(crate) fn real_path(&self) -> anyhow::Result<PathBuf> {
        match &self.path_hex {
            None => Ok(PathBuf::from(&self.path)),
            Some(hex) => Ok(PathBuf::from(OsStr::from_bytes(&from_hex(hex)?))),
        }
    }
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn from_hex(hex: &str) -> anyhow::Result<Vec<u8>> {
    anyhow::ensure!(hex.is_ascii() && hex.len().is_multiple_of(2), "{hex:?} is not hex");
    (0..hex.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&hex[at..at + 2], 16)?)).collect()
}
