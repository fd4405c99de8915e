//! Where the built examples are.

use std::path::PathBuf;
use std::process::Command;

/// The program of this example, built when it is not there or not fresh.
pub(crate) fn program(example: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    let built =
        Command::new(env!("CARGO")).args(["build", "-p", "outlast-examples", "--example", example]).status().unwrap();
    assert!(built.success());
    path.join("examples").join(example)
}
