use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::*;

/// Every package of the workspace.
const PACKAGES: [&str; 6] = ["monitor", "monitor-common", "monitor-ebpf", "monitor/fuzz", "tests", "xtask"];

fn read(path: &str) -> String {
    fs::read_to_string(workspace::root().join(path)).expect("it is in the checkout")
}

/// First cell of each row, without its back-quotes, and the others.
fn rows(text: &str) -> impl Iterator<Item = (&str, Vec<&str>)> {
    text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.trim_end_matches(" |").split(" | ");
        Some((cells.next()?.trim_end_matches('`'), cells.collect()))
    })
}

#[test]
fn every_package_is_looked_at() {
    let manifest: toml::Table = read("Cargo.toml").parse().expect("TOML");
    let members = manifest["workspace"]["members"].as_array().expect("members");
    let members: BTreeSet<_> = members.iter().filter_map(toml::Value::as_str).collect();
    assert_eq!(members, PACKAGES.into());
}

#[test]
fn every_direct_dependency_is_in_the_table_with_who_uses_it_and_why() {
    let mut used: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for package in PACKAGES {
        let manifest: toml::Table = read(&format!("{package}/Cargo.toml")).parse().expect("TOML");
        let targets = manifest.get("target").and_then(toml::Value::as_table).into_iter().flatten();
        let places = targets.filter_map(|(_, target)| target.as_table()).chain([&manifest]);
        let kinds = places.flat_map(|place| {
            ["dependencies", "dev-dependencies", "build-dependencies"].map(|kind| place.get(kind)).into_iter().flatten()
        });
        for name in kinds.filter_map(toml::Value::as_table).flat_map(toml::Table::keys) {
            if !PACKAGES.contains(&name.as_str()) {
                used.entry(name.clone()).or_default().insert(package);
            }
        }
    }
    let document = read("docs/dependencies.md");
    let mut listed = BTreeMap::new();
    for (name, cells) in rows(&document) {
        let [users, purpose, reason] = cells[..] else { panic!("{name} has {} cells", cells.len()) };
        assert!(!purpose.is_empty() && !reason.is_empty(), "{name}");
        listed.insert(name.to_owned(), users.split(", ").collect::<BTreeSet<_>>());
    }
    assert_eq!(listed, used);
}

#[test]
fn what_is_unsafe_is_in_the_files_that_the_table_names_and_in_no_other() {
    let document = read("docs/security.md");
    let (_, section) = document.split_once("## Unsafe code").expect("a section");
    let section = section.split("\n## ").next().unwrap_or(section);
    let listed: BTreeSet<String> = rows(section).map(|(file, _)| file.to_owned()).collect();
    let mut found = BTreeSet::new();
    for package in PACKAGES {
        look_into(&workspace::root().join(package), &mut found);
    }
    assert_eq!(found, listed);
}

#[test]
fn every_test_that_holds_a_claim_exists() {
    let document = read("docs/security.md");
    let tables = document.split("held by |").skip(1).filter_map(|text| text.split_once("\n\n"));
    let held =
        tables.flat_map(|(table, _)| table.lines()).filter_map(|line| line.trim_end_matches(" |").rsplit(" | ").next());
    let names: BTreeSet<_> =
        held.flat_map(|cell| cell.split('`').skip(1).step_by(2)).filter(|name| !name.contains(' ')).collect();
    assert!(names.len() > 15, "{names:?}");
    let mut sources = String::new();
    for package in PACKAGES {
        gather(&workspace::root().join(package), &mut sources);
    }
    for name in names {
        // A property test takes arguments, so only the opening parenthesis is matched.
        assert!(sources.contains(&format!("fn {name}(")), "there is no test {name}");
    }
}

fn gather(directory: &Path, all: &mut String) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            gather(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&fs::read_to_string(&path).expect("text"));
        }
    }
}

fn look_into(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            look_into(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            // This file, which has the words in it.
            && !path.ends_with("xtask/src/supply/tests.rs")
            && fs::read_to_string(&path).expect("text").lines().any(is_unsafe)
        {
            let path = path.strip_prefix(workspace::root()).expect("below the root");
            found.insert(path.display().to_string());
        }
    }
}

fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or(line);
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait", "#[unsafe("]
        .iter()
        .any(|word| code.contains(word))
}
