//! Points the agent at the committed kernel object, and refuses one that is older than its sources.
//!
//! Sets for the compiler: `DEFIB_EBPF_OBJECT` (its absolute path), `DEFIB_EBPF_SOURCES` (the short hash of its sources)
//! and `DEFIB_GIT_COMMIT` (`unknown` outside a git checkout).

#![expect(clippy::disallowed_methods, reason = "it reads files of this repository")]

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[path = "../xtask/src/source_hash.rs"]
mod source_hash;

use source_hash::{LOCK, MANIFEST, OBJECT, SOURCES};

fn main() {
    // Asked at run time: the checkout may have moved since this was compiled.
    let package = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let root = package.parent().unwrap_or(&package);
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../xtask/src/source_hash.rs");
    for path in SOURCES.into_iter().chain([LOCK, MANIFEST, OBJECT]) {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    match verified(root) {
        Ok(sources) => println!("cargo::rustc-env=DEFIB_EBPF_SOURCES={}", sources.get(..12).unwrap_or(&sources)),
        Err(error) => println!("cargo::error=the kernel object {OBJECT}: {error}: run `cargo xtask ebpf`"),
    }
    println!("cargo::rustc-env=DEFIB_EBPF_OBJECT={}", root.join(OBJECT).display());
    println!("cargo::rustc-env=DEFIB_GIT_COMMIT={}", commit(root).as_deref().unwrap_or("unknown"));
}

/// The hash of the sources, when it and the object's own are those that the manifest records.
fn verified(root: &Path) -> Result<String, Box<dyn Error>> {
    let manifest = fs::read_to_string(root.join(MANIFEST)).map_err(|error| format!("{MANIFEST}: {error}"))?;
    let sources = source_hash::of_sources(root)?;
    if recorded(&manifest, "sources") != Some(&sources) {
        return Err("its sources have changed since it was built".into());
    }
    let object = fs::read(root.join(OBJECT))?;
    if recorded(&manifest, "object") != Some(&source_hash::of_bytes(&object)) {
        return Err(format!("it is not the one that {MANIFEST} describes").into());
    }
    Ok(sources)
}

/// The value of `key = "value"` in the manifest, which has no such line twice.
fn recorded<'a>(manifest: &'a str, key: &str) -> Option<&'a str> {
    manifest.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
}

/// The commit that is checked out. A tree without git of its own, or a machine without it, has none.
fn commit(root: &Path) -> Option<String> {
    if !root.join(".git").exists() {
        return None;
    }
    let git = |args: &[&str]| -> Option<String> {
        let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // What a checkout or a commit changes: the log of HEAD, where there is one. Other branches are of no concern. Only what exists:
    // cargo would rerun us for ever for a file that does not.
    let path = |file| Some(root.join(git(&["rev-parse", "--git-path", file])?));
    let (log, head) = (path("logs/HEAD")?, path("HEAD")?);
    let files = if log.exists() { vec![head, log] } else { vec![head, path("refs/heads")?, path("packed-refs")?] };
    for file in files.iter().filter(|file| file.exists()) {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    git(&["rev-parse", "--verify", "--quiet", "--short=12", "HEAD"])
}
