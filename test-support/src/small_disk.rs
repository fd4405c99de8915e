//! A file system of its own, small enough to be filled.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system; needs root.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// One of so many bytes, as `mount` writes them: `24m`. Fails where the test may not mount: it would show nothing.
    pub fn mount(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], directory.path());
        Self(directory)
    }

    /// Its root.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Gives it another size.
    pub fn resize(&self, size: &str) {
        mount(&["-o", &format!("remount,size={size}")], self.path());
    }

    /// Takes all that is left.
    pub fn fill(&self) {
        let mut file = File::create(self.ballast()).unwrap();
        while file.write_all(&[7; 4_096]).is_ok() {}
    }

    /// Gives back what `fill` has taken.
    pub fn make_room(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A server may still be ending on it.
        let _unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn mount(arguments: &[&str], path: &Path) {
    let mounted = Command::new("mount").args(arguments).arg(path).status();
    assert!(mounted.unwrap().success(), "this test mounts a small file system: run it as root");
}
