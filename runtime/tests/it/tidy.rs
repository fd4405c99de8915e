//! House rules that no compiler holds: sizes, edges between crates, where SQL may stand, stray files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a source file.
const FILE_LINES_MAX: usize = 600;
/// The packages of the workspace, and which of them each may use outside its tests.
const EDGES: [(&str, &[&str]); 10] = [
    ("core", &[]),
    ("storage", &["outlast-core"]),
    ("broker", &["outlast-core"]),
    ("client", &["outlast-broker", "outlast-core", "outlast-storage"]),
    ("runtime", &["outlast-broker", "outlast-client", "outlast-core", "outlast-storage"]),
    ("examples", &["outlast"]),
    ("examples/render-farm", &["outlast"]),
    ("bench", &["outlast"]),
    ("chaos-tests", &["outlast", "outlast-broker", "outlast-core", "outlast-storage"]),
    ("test-support", &[]),
];
/// Files with an argument that is a tuple because users know it so.
const TUPLES: [&str; 1] = ["runtime/src/testing.rs"];
/// What the shell takes from `Surroundings` and from tokio's clock, so that a simulation can decide it; and tables whose order is
/// the system's.
const SURROUNDINGS: [&str; 9] = [
    "tokio::spawn(",
    "task::spawn(",
    "spawn_blocking(",
    "HashMap",
    "HashSet",
    "RandomState",
    "new_v4(",
    "SystemTime::now",
    "std::time::Instant",
];
/// Where some of it may stand all the same: what a simulation does not run, what is public so, and the surroundings themselves.
const OUTSIDE: [&str; 5] = [
    "runtime/src/telemetry",
    "runtime/src/providers",
    "client/src/trace.rs",
    "client/src/surroundings.rs",
    "client/src/query.rs",
];
/// What core may not even name.
const IMPURE: [&str; 6] = ["tokio", "rusqlite", "sqlx", "async-nats", "ractor", "rand"];
/// What lies at the root.
const ROOT: [&str; 25] = [
    ".ci",
    ".config",
    ".github",
    ".gitignore",
    "ARCHITECTURE.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "bench",
    "broker",
    "chaos-tests",
    "client",
    "clippy.toml",
    "core",
    "deny.toml",
    "deploy",
    "dev",
    "docs",
    "examples",
    "runtime",
    "rustfmt.toml",
    "storage",
    "test-support",
];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file of the tree, from the root, but for what is built.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.file_name().unwrap().to_str() {
                Some("target" | ".git") => {}
                _ if path.is_dir() => open.push(path),
                _ => found.push(path.strip_prefix(root()).unwrap().to_owned()),
            }
        }
    }
    found
}

fn sources() -> impl Iterator<Item = (PathBuf, String)> {
    let rust = files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.map(|path| (path.clone(), fs::read_to_string(root().join(path)).unwrap()))
}

fn dependencies(package: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
    let lines = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let names = lines.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| !name.is_empty() && !name.starts_with('#')).map(str::to_owned).collect()
}

/// How many arguments are tuples that are taken apart at once. Bindings and the first argument of a closure may be.
fn tuple_arguments(text: &str) -> usize {
    let is_tuple = |(end, _): &(usize, &str)| {
        let Some(start) = text[..*end].rfind('(') else { return false };
        let inside = &text[start + 1..*end];
        let names = inside.contains(',') && inside.chars().all(|c| c.is_ascii_lowercase() || "_, ".contains(c));
        names && text[..start].trim_end().ends_with(['(', ','])
    };
    text.match_indices("): (").filter(is_tuple).count()
}

/// What of the shell a seed would not decide.
fn undecided(path: &Path, text: &str) -> Option<String> {
    let is_shell = ["runtime/src", "client/src"].iter().any(|shell| path.starts_with(shell));
    if !is_shell || OUTSIDE.iter().any(|outside| path.starts_with(outside)) {
        return None;
    }
    let code = text.split("#[cfg(test)]").next()?;
    let is_fair = |at: usize| code[at..].lines().nth(1).is_none_or(|next| next.trim() != "biased;");
    let fair = code.match_indices("select! {").any(|(at, _)| is_fair(at)).then_some("a select without `biased`");
    let lines = || code.lines().filter(|line| !line.trim_start().starts_with("//"));
    fair.or_else(|| SURROUNDINGS.into_iter().find(|word| lines().any(|line| line.contains(word)))).map(str::to_owned)
}

#[test]
fn tidy() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            wrong.push(format!("{} has {lines} lines: split it along a word of the glossary", path.display()));
        }
        if !path.starts_with("bench/peers") && !text.starts_with("//!") {
            wrong.push(format!("{} does not say what it is for", path.display()));
        }
        let is_test = path.components().any(|part| part.as_os_str() == "tests");
        // An activity's input may be a tuple, so programs may have them.
        let is_program = is_test || path.starts_with("examples");
        if !is_program && tuple_arguments(&text) > TUPLES.iter().filter(|known| path == Path::new(known)).count() {
            wrong.push(format!("{} has a function that takes several arguments in a tuple: name them", path.display()));
        }
        if let Some(what) = undecided(&path, &text) {
            wrong.push(format!("{} has {what}: a simulation could not decide it", path.display()));
        }
        let sql =
            ["SELECT ", "INSERT ", "UPDATE ", "DELETE FROM"].iter().any(|verb| text.contains(&format!("\"{verb}")));
        let may_have_sql = path.starts_with("storage/src") || is_test;
        if sql && !may_have_sql {
            wrong.push(format!("{} holds SQL, which stands in storage/ only", path.display()));
        }
    }
    let stray: BTreeMap<_, _> =
        files().into_iter().filter_map(|path| Some((path.iter().next()?.to_owned(), path))).collect();
    for (top, path) in stray {
        if !ROOT.contains(&top.to_str().unwrap()) {
            wrong.push(format!("{} is not a place for anything", path.display()));
        }
    }
    for (package, allowed) in EDGES {
        let ours = dependencies(package).into_iter().filter(|name| name.starts_with("outlast"));
        wrong.extend(
            ours.filter(|name| !allowed.contains(&name.as_str())).map(|name| format!("{package} may not use {name}")),
        );
    }
    wrong.extend(
        dependencies("core")
            .into_iter()
            .filter(|name| IMPURE.contains(&name.as_str()))
            .map(|name| format!("core may not use {name}")),
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
