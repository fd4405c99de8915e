//! Goal: a backup that is killed again and again ends with the right manifest, and writes no object twice; what goes wrong
//! in the source, in the destination or with the arguments is told apart.
//! Method: the built program runs on a small tree and is killed with SIGKILL at varied moments; objects that were finished
//! before a kill must be the very same files afterwards, and the restored tree must equal the source.
#![expect(clippy::unwrap_used, reason = "tests")]

mod programs;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use outlast_test_support::SmallDisk;
use sha2::{Digest, Sha256};

use programs::program;

/// Exit code of a backup that is done but for some entries.
const INCOMPLETE_BACKUP: i32 = 3;
/// Exit code of a restore that is done but for some entries.
const INCOMPLETE_RESTORE: i32 = 4;

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
                format!("link {} {:?}", meta.mtime_nsec(), fs::read_link(&path).unwrap())
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
    let root = tempfile::tempdir().unwrap();
    let (source, backup, target) = (root.path().join("src"), root.path().join("dst"), root.path().join("target"));
    make_tree(&source);
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    let mut finished: BTreeMap<PathBuf, (u64, i64)> = BTreeMap::new();
    for n in 0..12_u64 {
        let mut child = spawn(&source, &backup);
        std::thread::sleep(Duration::from_millis(60 + n * 37 % 200));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = objects(&backup);
        for (path, before) in &finished {
            assert_eq!(now.get(path), Some(before), "{} was written again", path.display());
        }
        finished = now;
    }
    // A fast machine may have finished before the last kill; then this is the next backup, with nothing left to write.
    let finished_early = backup.join("manifest.jsonl").exists();
    let last = back_up(&source, &backup);
    let errors = String::from_utf8_lossy(&last.stderr);
    // However often it was killed, it knows what it has written.
    let says = |count: usize| stdout(&last).contains(&format!("{count} objects written, 1 unreadable, 0 vanished"));
    let count = objects(&backup).len();
    assert!(says(count) || (finished_early && says(0)), "{count}: {}", stdout(&last));
    assert_eq!(last.status.code(), Some(INCOMPLETE_BACKUP), "{errors}");
    assert!(errors.contains("unreadable: socket"), "{errors}");
    assert_eq!(generations(&backup), 0, "the working files are gone");
    check_manifest(&source, &backup);
    let restored = restore(&backup, &target);
    assert_eq!(restored.status.code(), Some(INCOMPLETE_BACKUP), "{}", stderr(&restored));
    assert!(stderr(&restored).contains("not in the backup: socket: "), "{}", stderr(&restored));
    assert_eq!(describe(&target), describe(&source));
    assert!(stderr(&restore(&backup, &target)).contains("not empty"));
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
    let result = back_up(&root.path().join("none"), &root.path().join("dst"));
    assert_eq!(result.status.code(), Some(1));
    assert!(stderr(&result).contains("none cannot be read"));
}

#[test]
fn an_unfinished_backup_is_gone_on_with_by_its_own_source_only() {
    let root = tempfile::tempdir().unwrap();
    // The one path ends with the other: they must not be taken for the same.
    let (source, other) =
        (root.path().join("src"), root.path().join("far").join(root.path().strip_prefix("/").unwrap()));
    let (backup, moved) = (root.path().join("dst?x=1 %20"), root.path().join("moved"));
    make_tree(&source);
    fs::create_dir_all(other.join("src")).unwrap();
    let mut child = spawn(&source, &backup);
    wait_for("some objects", || objects(&backup).len() > 10);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = objects(&backup);
    for stranger in [other.join("src"), other] {
        let refused = back_up(&stranger, &backup);
        assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
        let expected = format!("holds an unfinished backup of {}: finish that one first", source.display());
        assert!(stderr(&refused).contains(&expected), "{}", stderr(&refused));
    }
    assert_eq!(objects(&backup), before, "a refused run does no work of the other backup");
    fs::rename(&backup, &moved).unwrap();
    let plan = plan_of(&moved);
    fs::write(source.join("late"), "not in the plan").unwrap();
    let done = back_up(&source, &moved);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(stdout(&done).starts_with("602 files"), "{}", stdout(&done));
    assert_eq!(fs::read_to_string(moved.join("manifest.jsonl")).unwrap().lines().count(), plan, "its plan was found");
    assert!(!backup.exists());
}

#[test]
fn a_destination_that_comes_back_is_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let (source, backup) = (root.path().join("src"), root.path().join("dst"));
    make_tree(&source);
    fs::create_dir_all(&backup).unwrap();
    fs::write(backup.join("objects"), "in the way").unwrap();
    let child = spawn(&source, &backup);
    wait_for("a plan", || generations(&backup) == 1 && backup.join(".backup/1/plan.jsonl").exists());
    std::thread::sleep(Duration::from_secs(1));
    fs::remove_file(backup.join("objects")).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(stdout(&done).starts_with("602 files"), "{}", stdout(&done));
}

#[test]
fn a_destination_that_stays_away_is_named_and_no_file_is_called_unreadable() {
    let root = tempfile::tempdir().unwrap();
    let (source, backup) = (root.path().join("src"), root.path().join("dst"));
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    fs::create_dir_all(&backup).unwrap();
    fs::write(backup.join("objects"), "in the way").unwrap();
    let failed = back_up(&source, &backup);
    assert_eq!(failed.status.code(), Some(1), "{}", stderr(&failed));
    let object = backup.join("objects").join(&digest(b"content")[..2]);
    let expected = [object.to_str().unwrap(), "cannot be written", "Not a directory"];
    assert!(expected.iter().all(|text| stderr(&failed).contains(text)), "{}", stderr(&failed));
    assert!(!stderr(&failed).contains("unreadable"), "{}", stderr(&failed));
    assert!(!backup.join("manifest.jsonl").exists());
}

#[test]
fn a_refused_run_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("src");
    fs::create_dir_all(source.join("inner")).unwrap();
    symlink(&source, root.path().join("way")).unwrap();
    let before = (describe(root.path()), fs::metadata(&source).unwrap().mtime_nsec());
    let places = ["src/new/backup", "src/inner", "src", "way/new", "", "none/../src/new"];
    for destination in places.map(|place| root.path().join(place)) {
        let refused = back_up(&source, &destination);
        assert_eq!(refused.status.code(), Some(1), "{}: {}", destination.display(), stdout(&refused));
        let known = ["lies inside of", "leads through a directory that is not there"];
        assert!(known.iter().any(|text| stderr(&refused).contains(text)), "{}", stderr(&refused));
    }
    assert_eq!((describe(root.path()), fs::metadata(&source).unwrap().mtime_nsec()), before);
}

#[test]
fn a_damaged_object_is_written_anew_or_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let (source, backup) = (root.path().join("src"), root.path().join("dst"));
    make_tree(&source);
    assert!(back_up(&source, &backup).status.success());
    let sound = objects(&backup);
    let (damaged, lost) = (object_of(&backup, "d0/e0/f0"), object_of(&backup, "d1/e1/f1"));
    let mut bytes = fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&damaged, bytes).unwrap();
    fs::remove_file(&lost).unwrap();

    let restored = restore(&backup, &root.path().join("partial"));
    assert_eq!(restored.status.code(), Some(INCOMPLETE_RESTORE), "{}", stderr(&restored));
    for name in ["not restored: d0/e0/f0: ", "not restored: d1/e1/f1: "] {
        assert!(stderr(&restored).contains(name), "{}", stderr(&restored));
    }
    let failed = stderr(&restored).lines().count();
    assert_eq!(describe(&root.path().join("partial")).len() + failed, describe(&source).len());

    let again = back_up(&source, &backup);
    assert!(again.status.success(), "{}", stderr(&again));
    assert!(stdout(&again).contains("2 objects written"), "{}", stdout(&again));
    assert!(stdout(&again).contains("1 of the objects written replace damaged ones"), "{}", stdout(&again));
    let now = objects(&backup);
    let kept = |path: &&PathBuf| **path != damaged && **path != lost;
    assert!(sound.keys().filter(kept).all(|path| now.get(path) == sound.get(path)), "sound objects stay as they are");
    let target = root.path().join("target");
    assert!(restore(&backup, &target).status.success());
    assert_eq!(describe(&target), describe(&source));
}

#[test]
fn what_vanishes_behind_the_plan_is_not_called_unreadable() {
    let root = tempfile::tempdir().unwrap();
    let (source, backup) = (root.path().join("src"), root.path().join("dst"));
    make_tree(&source);
    // The store is out of reach until the plan is made and the file is gone.
    fs::create_dir_all(&backup).unwrap();
    fs::write(backup.join("objects"), "in the way").unwrap();
    let child = spawn(&source, &backup);
    wait_for("a plan", || backup.join(".backup/1/plan.jsonl").exists());
    fs::remove_file(source.join("nothing")).unwrap();
    fs::remove_file(backup.join("objects")).unwrap();
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(INCOMPLETE_BACKUP), "{}", stderr(&done));
    assert!(stdout(&done).contains("0 unreadable, 1 vanished"), "{}", stdout(&done));
    assert!(stderr(&done).contains("vanished: nothing"), "{}", stderr(&done));
}

#[test]
fn a_manifest_is_not_replaced_by_that_of_another_source_unless_that_is_said() {
    let root = tempfile::tempdir().unwrap();
    let (source, other, backup) = (root.path().join("src"), root.path().join("other"), root.path().join("dst"));
    for (tree, content) in [(&source, "first"), (&other, "second")] {
        fs::create_dir_all(tree).unwrap();
        fs::write(tree.join("file"), content).unwrap();
    }
    assert!(back_up(&source, &backup).status.success());
    let manifest = fs::read_to_string(backup.join("manifest.jsonl")).unwrap();
    // Known by the note beside the manifest, by the state database, or not at all.
    for lost in ["nothing", "source", ".backup"] {
        let path = backup.join(lost);
        let _gone = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        let refused = back_up(&other, &backup);
        assert_eq!(refused.status.code(), Some(1), "without {lost}: {}", stdout(&refused));
        let text = stderr(&refused);
        assert!(text.contains("choose another directory") && text.contains("--change-source"), "{text}");
        assert_eq!(text.contains(source.to_str().unwrap()), lost != ".backup", "{text}");
        assert_eq!(fs::read_to_string(backup.join("manifest.jsonl")).unwrap(), manifest);
    }
    let change = ["--change-source".as_ref(), other.as_os_str(), backup.as_os_str()];
    let changed = Command::new(&*PROGRAM).args(change).output().unwrap();
    assert!(changed.status.success(), "{}", stderr(&changed));
    assert_ne!(fs::read_to_string(backup.join("manifest.jsonl")).unwrap(), manifest);
    assert!(back_up(&other, &backup).status.success());
    assert_eq!(back_up(&source, &backup).status.code(), Some(1));
}

#[test]
fn a_destination_that_is_full_is_told_soon_and_gone_on_with_when_it_has_room() {
    let root = tempfile::tempdir().unwrap();
    let small = SmallDisk::mount("6m");
    let (source, target) = (root.path().join("src"), root.path().join("target"));
    fs::create_dir_all(&source).unwrap();
    for n in 0..24_u8 {
        // Digests: nothing to compress.
        let content: Vec<u8> =
            (0..16_384_u32).flat_map(|at| Sha256::digest([&[n], &at.to_le_bytes()[..]].concat())).collect();
        fs::write(source.join(format!("f{n}")), content).unwrap();
    }
    // Building it is not what is timed.
    LazyLock::force(&PROGRAM);
    let begun = Instant::now();
    let full = back_up(&source, small.path());
    let took = begun.elapsed();
    assert_eq!(full.status.code(), Some(1), "{}", stderr(&full));
    let told = ["No space left", "nothing could be written to", "full"];
    assert!(told.iter().any(|text| stderr(&full).contains(text)), "{}", stderr(&full));
    assert!(stderr(&full).contains(small.path().to_str().unwrap()), "{}", stderr(&full));
    assert!(!stderr(&full).contains("unreadable"), "{}", stderr(&full));
    // It says about twenty seconds; it was ten minutes.
    assert!(took < Duration::from_secs(100), "{took:?}: {}", stderr(&full));
    assert!(!small.path().join("manifest.jsonl").exists());

    small.resize("64m");
    let before = objects(small.path());
    let done = back_up(&source, small.path());
    assert!(done.status.success(), "{}", stderr(&done));
    let now = objects(small.path());
    assert!(before.iter().all(|(path, file)| now.get(path) == Some(file)), "what was stored stays as it is");
    assert!(restore(small.path(), &target).status.success());
    assert_eq!(describe(&target), describe(&source));
}

/// Looked for once: building anew takes a while.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| program("backup"));

fn spawn(source: &Path, backup: &Path) -> Child {
    let mut command = Command::new(&*PROGRAM);
    command.arg(source).arg(backup).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn back_up(source: &Path, backup: &Path) -> Output {
    spawn(source, backup).wait_with_output().unwrap()
}

fn restore(backup: &Path, target: &Path) -> Output {
    Command::new(&*PROGRAM).arg("--restore").arg(backup).arg(target).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_there() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Backups whose working files are there.
fn generations(backup: &Path) -> usize {
    let work = fs::read_dir(backup.join(".backup")).into_iter().flatten();
    work.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
}

/// Lines of the plan.
fn plan_of(backup: &Path) -> usize {
    let found = fs::read_dir(backup.join(".backup")).unwrap();
    let plans = found.filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("plan.jsonl")).ok());
    plans.map(|plan| plan.lines().count()).last().unwrap()
}

/// Where the content of a file lies in the backup.
fn object_of(backup: &Path, path: &str) -> PathBuf {
    let manifest = fs::read_to_string(backup.join("manifest.jsonl")).unwrap();
    let lines = manifest.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let entry = lines.into_iter().find(|entry| entry["path"] == path).unwrap();
    let digest = entry["digest"].as_str().unwrap();
    backup.join("objects").join(&digest[..2]).join(format!("{}.zst", &digest[2..]))
}
