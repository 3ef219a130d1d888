//! One hash over everything that the kernel object is made from.
//!
//! The object's manifest records it, `cargo xtask ebpf --check` and the agent's build script recompute it: an object
//! that is older than its sources fails the build instead of being loaded. The build script includes this very file,
//! therefore it needs nothing but std and sha2 and reads `Cargo.lock` by hand.
//!
//! What goes in: the kernel crate, the crate that it shares with the agent, and each package from the registry that
//! is compiled into either. Line endings, file order and the place of the checkout do not matter.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// The built object, relative to the top of the checkout.
pub(crate) const OBJECT: &str = "monitor-ebpf/object/defib.bpf.o";
/// What says where the object comes from.
pub(crate) const MANIFEST: &str = "monitor-ebpf/object/defib.toml";
/// Records the versions of the packages.
pub(crate) const LOCK: &str = "Cargo.lock";
/// Files and directories that are hashed whole.
pub(crate) const SOURCES: [&str; 4] =
    ["monitor-common/Cargo.toml", "monitor-common/src", "monitor-ebpf/Cargo.toml", "monitor-ebpf/src"];

/// The package that the object is built from.
const KERNEL_PACKAGE: &str = "monitor-ebpf";
/// Runs in build scripts and only chooses `cfg`s: what it depends on does not reach the object, and an update of, say,
/// serde must not ask for a new object.
const BUILD_SCRIPTS_ONLY: [&str; 1] = ["aya-build"];

/// The hash over all sources below `root`, in hexadecimal. Errors name the path.
pub(crate) fn of_sources(root: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    for path in files(root)? {
        let bytes = fs::read(root.join(&path)).map_err(|error| at(&path, &error))?;
        part(&mut hash, path.to_string_lossy().as_bytes());
        part(&mut hash, &unix_lines(&bytes));
    }
    let lock = fs::read_to_string(root.join(LOCK)).map_err(|error| at(Path::new(LOCK), &error))?;
    for package in packages(&lock, KERNEL_PACKAGE).map_err(|error| at(Path::new(LOCK), &error))? {
        part(&mut hash, package.as_bytes());
    }
    Ok(hex(&hash.finalize()))
}

/// The SHA-256 of some bytes, in hexadecimal.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// All hashed files, relative to `root`, in an order that does not depend on the file system.
fn files(root: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut pending: Vec<PathBuf> = SOURCES.map(PathBuf::from).into();
    while let Some(path) = pending.pop() {
        if !root.join(&path).is_dir() {
            found.insert(path);
            continue;
        }
        for entry in fs::read_dir(root.join(&path)).map_err(|error| at(&path, &error))? {
            let name = entry.map_err(|error| at(&path, &error))?.file_name();
            let text = name.to_string_lossy();
            let of_an_editor = text.starts_with('.') || text.starts_with('#') || text.ends_with('~');
            if !of_an_editor {
                pending.push(path.join(name));
            }
        }
    }
    Ok(found)
}

/// Adds a part with its length, so that the border between two parts matters.
fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn unix_lines(bytes: &[u8]) -> Vec<u8> {
    let mut following = bytes.iter().copied().skip(1).chain([0]);
    let last_of_line = |byte: &u8| !(following.next() == Some(b'\n') && *byte == b'\r');
    bytes.iter().copied().filter(last_of_line).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

/// One `[[package]]` of a lock file.
#[derive(Default)]
struct Package<'a> {
    name: &'a str,
    version: &'a str,
    checksum: &'a str,
    dependencies: Vec<&'a str>,
}

impl Package<'_> {
    /// Whether this is what an entry of `dependencies` means: `name`, `name version` or `name version (source)`, as
    /// much as is needed to be unique.
    fn is_meant_by(&self, entry: &str) -> bool {
        let mut words = entry.split(' ');
        words.next() == Some(self.name) && words.next().is_none_or(|version| version == self.version)
    }
}

/// `start` and all that it depends on, each as `name version checksum`.
fn packages(lock: &str, start: &str) -> Result<BTreeSet<String>, String> {
    let packages = parse(lock);
    let mut found = BTreeSet::new();
    let mut pending = vec![start];
    while let Some(entry) = pending.pop() {
        let package = packages.iter().find(|package| package.is_meant_by(entry));
        let package = package.ok_or_else(|| format!("there is no package `{entry}`"))?;
        let new = found.insert(format!("{} {} {}", package.name, package.version, package.checksum));
        if new && !BUILD_SCRIPTS_ONLY.contains(&package.name) {
            pending.extend(&package.dependencies);
        }
    }
    Ok(found)
}

/// Reads what cargo writes: a key or a list item to a line.
fn parse(lock: &str) -> Vec<Package<'_>> {
    let mut packages = Vec::new();
    for line in lock.lines() {
        if line == "[[package]]" {
            packages.push(Package::default());
        }
        let Some(package) = packages.last_mut() else { continue };
        if let Some((key, value)) = line.split_once(" = ") {
            let value = value.trim_matches('"');
            match key {
                "name" => package.name = value,
                "version" => package.version = value,
                "checksum" => package.checksum = value,
                _ => {}
            }
        } else if let Some(item) = line.strip_prefix(" \"") {
            package.dependencies.push(item.trim_end_matches(',').trim_end_matches('"'));
        }
    }
    packages
}

#[cfg(test)]
#[path = "source_hash/tests.rs"] // said in full: the build script reaches this file from another directory
mod tests;
