//! Where the built examples are.

use std::path::{Path, PathBuf};
use std::process::Command;

use walkdir::{DirEntry, WalkDir};

/// The program of this example, built when it is not there or not fresh.
pub(crate) fn program(example: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    let program = path.join("examples").join(example);
    if !is_fresh(&program) {
        let build = ["build", "-p", "outlast-examples", "--example", example];
        assert!(Command::new(env!("CARGO")).args(build).status().unwrap().success());
    }
    program
}

/// Whether it was built after all that it is made of, as by the command that built this test. A second cargo would wait for locks of
/// the first, and may compile everything once more, as it unites the features of fewer packages.
fn is_fresh(program: &Path) -> bool {
    let Ok(built) = program.metadata().and_then(|program| program.modified()) else { return false };
    let is_part = |entry: &DirEntry| !["target", "tests", ".git"].iter().any(|name| entry.file_name() == *name);
    let is_older = |entry: &DirEntry| {
        let changed = entry.metadata().ok().and_then(|file| file.modified().ok());
        changed.is_some_and(|changed| changed <= built)
    };
    let is_source = |entry: &DirEntry| {
        entry.path().extension().is_some_and(|kind| ["rs", "toml", "lock", "sql"].iter().any(|source| kind == *source))
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = WalkDir::new(root).into_iter().filter_entry(is_part).filter_map(Result::ok);
    files.filter(is_source).all(|file| is_older(&file))
}
