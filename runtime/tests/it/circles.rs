//! No files of a package import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, ItemUse, UseTree, Visibility};

use crate::tidy::root;

/// The segments that lead to a module from its crate's root, or to an item.
type Names = Vec<String>;

/// One file of a package, which is one module.
#[derive(Default)]
struct Module {
    file: PathBuf,
    /// Whatever its code names outside of its unit tests.
    paths: BTreeSet<Names>,
    /// What it only passes on: the name that others use, and where it comes from. Passing on is no use.
    passed_on: BTreeMap<String, Names>,
}

/// Collects what a module names, as paths from the crate's root.
struct Collector<'a> {
    at: Names,
    children: &'a BTreeSet<String>,
    module: Module,
}

/// Every module of a package by its path.
fn modules(package: &Path) -> BTreeMap<Names, Module> {
    let source = package.join("src");
    let mut files = BTreeMap::new();
    let mut open = vec![source.clone()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.insert(names_of(path.strip_prefix(&source).unwrap()), path);
            }
        }
    }
    let known: BTreeSet<Names> = files.keys().cloned().collect();
    let children = |of: &Names| {
        let below = known.iter().filter(|names| names.len() == of.len() + 1 && names.starts_with(of));
        below.map(|names| names[of.len()].clone()).collect::<BTreeSet<_>>()
    };
    // Unit tests that have a file of their own may use what they test.
    let is_test = |names: &Names| names.last().is_some_and(|name| name == "tests");
    let read = |(names, file): (Names, PathBuf)| {
        let parsed = syn::parse_file(&fs::read_to_string(&file).unwrap()).unwrap();
        let mut collector =
            Collector { at: names.clone(), children: &children(&names), module: Module { file, ..Module::default() } };
        collector.visit_file(&parsed);
        (names, collector.module)
    };
    files.into_iter().filter(|(names, _)| !is_test(names)).map(read).collect()
}

/// The module that a file is.
fn names_of(file: &Path) -> Names {
    let mut names: Names = file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if matches!(names.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        names.pop();
    }
    names
}

impl Collector<'_> {
    /// The path from the crate's root, unless it leads out of the crate.
    fn path_from_root(&self, path: &[String]) -> Option<Names> {
        let supers = path.iter().take_while(|name| *name == "super").count();
        let (base, rest) = match path.first()?.as_str() {
            "crate" => (0, &path[1..]),
            "self" => (self.at.len(), &path[1..]),
            "super" => (self.at.len().checked_sub(supers)?, &path[supers..]),
            first if self.children.contains(first) => (self.at.len(), path),
            _ => return None,
        };
        Some(self.at[..base].iter().chain(rest).cloned().collect())
    }

    fn note_use(&mut self, tree: &UseTree, before: &mut Names, passes_on: bool) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.note_use(&path.tree, before, passes_on);
                before.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.note_use(tree, before, passes_on)),
            UseTree::Name(name) => self.note_end(&name.ident.to_string(), &name.ident.to_string(), before, passes_on),
            UseTree::Rename(new) => self.note_end(&new.ident.to_string(), &new.rename.to_string(), before, passes_on),
            UseTree::Glob(_) => self.module.paths.extend(self.path_from_root(before)),
        }
    }

    fn note_end(&mut self, name: &str, known_as: &str, before: &[String], passes_on: bool) {
        let mut path = before.to_vec();
        path.extend((name != "self").then(|| name.to_owned()));
        let Some(path) = self.path_from_root(&path) else { return };
        if passes_on {
            self.module.passed_on.insert(known_as.to_owned(), path);
        } else {
            self.module.paths.insert(path);
        }
    }
}

impl<'ast> Visit<'ast> for Collector<'_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if !is_for_tests(&item.attrs) {
            self.note_use(&item.tree, &mut Vec::new(), !matches!(item.vis, Visibility::Inherited));
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if is_for_tests(&item.attrs) || item.content.is_none() {
            return;
        }
        self.at.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.at.pop();
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if names.len() > 1 {
            self.module.paths.extend(self.path_from_root(&names));
        }
        visit::visit_path(self, path);
    }
}

/// Whether something is built for unit tests alone.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

/// The module in which what a path names is written, over all that only passes it on.
fn home<'a>(modules: &'a BTreeMap<Names, Module>, path: &[String], steps_left: usize) -> &'a Names {
    let mut depth = 0;
    while depth < path.len() && modules.contains_key(&path[..=depth]) {
        depth += 1;
    }
    let (names, module) = modules.get_key_value(&path[..depth]).unwrap();
    match path.get(depth).and_then(|name| module.passed_on.get(name)) {
        Some(origin) if steps_left > 0 => {
            let whole: Names = origin.iter().chain(&path[depth + 1..]).cloned().collect();
            home(modules, &whole, steps_left - 1)
        }
        _ => names,
    }
}

/// All that can be reached from a module over one use or more.
fn reachable<'a>(edges: &BTreeMap<&'a Names, BTreeSet<&'a Names>>, from: &'a Names) -> BTreeSet<&'a Names> {
    let (mut found, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(names) = open.pop() {
        open.extend(edges[names].iter().filter(|next| found.insert(**next)));
    }
    found
}

/// Every use that is part of a circle: which file names what of which. A file may name what the `mod.rs` of its own folder
/// holds: that folder is one room, and its `mod.rs` the roof.
fn circles(modules: &BTreeMap<Names, Module>) -> BTreeSet<String> {
    let uses = |of: &Names| -> BTreeMap<&Names, &Names> {
        let homes = modules[of].paths.iter().map(|path| (home(modules, path, 8), path));
        homes.filter(|(home, _)| *home != of && (home.is_empty() || !of.starts_with(home))).collect()
    };
    let uses: BTreeMap<&Names, _> = modules.keys().map(|names| (names, uses(names))).collect();
    let edges = uses.iter().map(|(names, uses)| (*names, uses.keys().copied().collect())).collect();
    let mut found = BTreeSet::new();
    for (names, uses) in &uses {
        for (home, path) in uses.iter().filter(|(home, _)| reachable(&edges, home).contains(names)) {
            let (file, other) = (modules[*names].file.display(), modules[*home].file.display());
            found.insert(format!("{file} names {} of {other}", path.join("::")));
        }
    }
    found
}

#[test]
fn no_files_of_a_package_import_each_other_in_a_circle() {
    let mut found = BTreeSet::new();
    for package in ["core", "storage", "broker", "client", "runtime", "chaos-tests"] {
        let modules = modules(&root().join(package));
        assert!(modules.len() > 1, "{package} is one file");
        assert!(modules.values().any(|module| !module.paths.is_empty()), "nothing in {package} imports anything");
        found.extend(circles(&modules));
    }
    assert!(found.is_empty(), "files import each other: {found:#?}");
}
