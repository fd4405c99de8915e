//! What names a database: an address of ours, or a path.

use std::path::PathBuf;

use super::FileId;
use crate::Error;

/// Where a database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// In memory, gone with the process.
    Memory,
    /// In a file.
    File(PathBuf),
}

impl Address {
    /// Reads `sqlite:path`, `sqlite://path`, `sqlite::memory:`, `:memory:` or a plain path, which is taken as it is.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let refuse = |what: &str| {
            Err(Error::unusable(format!("{text:?} {what}: use sqlite:PATH, sqlite::memory: or a plain path")))
        };
        let address = text.strip_prefix("sqlite://").or_else(|| text.strip_prefix("sqlite:"));
        // Other programs write this parameter; it says what is done here anyway.
        let path = address.map_or(text, |path| path.strip_suffix("?mode=rwc").unwrap_or(path));
        match path {
            "" => refuse("names no database"),
            ":memory:" => Ok(Self::Memory),
            _ if path.contains('\0') => refuse("holds a NUL character"),
            // SQLite reads such names as addresses of its own, and would keep nothing where they say so.
            _ if path.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("file:")) => {
                refuse("is an address that is not supported (for a file of this name write ./ before it)")
            }
            _ if address.is_some() && path.contains('?') => refuse("has parameters, and none is known"),
            _ if address.is_none() && path.contains("://") => refuse("is not a SQLite database"),
            _ => Ok(Self::File(PathBuf::from(path))),
        }
    }

    /// The file that is there now.
    pub fn file_id(&self) -> Option<FileId> {
        match self {
            Self::Memory => None,
            Self::File(path) => FileId::of(path),
        }
    }
}
