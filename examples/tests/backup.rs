//! Goal: a backup that is killed again and again ends with the right manifest, and writes no object twice.
//! Method: the built program runs on a small tree and is killed with SIGKILL at varied moments; objects that were finished
//! before a kill must be the very same files afterwards, and the restored tree must equal the source.
#![expect(clippy::unwrap_used, reason = "tests")]

mod programs;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};

use programs::program;

/// Exit code of a backup that is complete but for unreadable entries.
const WITH_UNREADABLE: i32 = 3;

fn make_tree(root: &Path) {
    for n in 0..600 {
        let directory = root.join(format!("d{}", n % 7)).join(format!("e{}", n % 5));
        fs::create_dir_all(&directory).unwrap();
        // Every tenth file has the content of another one.
        fs::write(directory.join(format!("f{n}")), format!("content {}\n", n - n % 10).repeat(1 + n * 13 % 500))
            .unwrap();
    }
    fs::create_dir_all(root.join("empty")).unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    symlink("d1/e1", root.join("link")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    fs::set_permissions(root.join("nothing"), fs::Permissions::from_mode(0o640)).unwrap();
    let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"odd-\xff-name");
    fs::write(root.join(odd), "odd").unwrap();
}

/// What a tree holds: content digest, link target or nothing, with the mode.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let text = if meta.is_dir() {
                open.push(path.clone());
                format!("directory {:o}", meta.mode())
            } else if meta.is_symlink() {
                format!("link {:?}", fs::read_link(&path).unwrap())
            } else if meta.is_file() {
                format!("file {:o} {} {}", meta.mode(), meta.mtime_nsec(), digest(&fs::read(&path).unwrap()))
            } else {
                continue;
            };
            found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
        }
    }
    found
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Finished objects with what tells whether a file was written anew.
fn objects(backup: &Path) -> BTreeMap<PathBuf, (u64, i64)> {
    let mut found = BTreeMap::new();
    for directory in fs::read_dir(backup.join("objects")).into_iter().flatten() {
        for object in fs::read_dir(directory.unwrap().path()).unwrap() {
            let path = object.unwrap().path();
            let meta = fs::metadata(&path).unwrap();
            found.insert(path, (meta.ino(), meta.mtime_nsec()));
        }
    }
    found
}

#[test]
fn a_killed_backup_goes_on_and_copies_nothing_twice() {
    let program = program("backup");
    let root = tempfile::tempdir().unwrap();
    let (source, backup, target) = (root.path().join("src"), root.path().join("dst"), root.path().join("target"));
    make_tree(&source);
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    let mut finished: BTreeMap<PathBuf, (u64, i64)> = BTreeMap::new();
    for n in 0..12_u64 {
        let mut child = Command::new(&program)
            .arg(&source)
            .arg(&backup)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(60 + n * 37 % 200));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = objects(&backup);
        for (path, before) in &finished {
            assert_eq!(now.get(path), Some(before), "{} was written again", path.display());
        }
        finished = now;
    }
    let last = Command::new(&program).arg(&source).arg(&backup).output().unwrap();
    let errors = String::from_utf8_lossy(&last.stderr);
    assert_eq!(last.status.code(), Some(WITH_UNREADABLE), "{errors}");
    assert!(errors.contains("unreadable: socket"), "{errors}");
    check_manifest(&source, &backup);
    let restored = Command::new(&program).arg("--restore").arg(&backup).arg(&target).output().unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    assert_eq!(describe(&target), describe(&source));
    let again = Command::new(&program).arg("--restore").arg(&backup).arg(&target).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("not empty"));
}

fn check_manifest(source: &Path, backup: &Path) {
    let manifest = fs::read_to_string(backup.join("manifest.jsonl")).unwrap();
    let mut files = 0;
    for line in manifest.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        if entry["kind"] != "file" || entry.get("path_hex").is_some() {
            continue;
        }
        let content = fs::read(source.join(entry["path"].as_str().unwrap())).unwrap();
        assert_eq!(entry["digest"], digest(&content).as_str(), "{line}");
        assert_eq!(entry["size"], content.len(), "{line}");
        files += 1;
    }
    assert_eq!(files, 601);
    assert_eq!(manifest.lines().filter(|line| line.contains("path_hex")).count(), 1);
}

#[test]
fn a_source_that_is_not_there_is_a_clear_error() {
    let root = tempfile::tempdir().unwrap();
    let result =
        Command::new(program("backup")).arg(root.path().join("none")).arg(root.path().join("dst")).output().unwrap();
    assert_eq!(result.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&result.stderr).contains("none cannot be read"));
}
