//! One compile of the kernel crate: the same bytes in every checkout.

use std::{
    env,
    ffi::OsString,
    fs, iter,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::toolchain::Toolchain;
use crate::{process, workspace};

const TARGET: &str = "bpfel-unknown-none";
/// The crates whose sources are ours.
const OURS: [&str; 4] = ["--package", "monitor-ebpf", "--package", "monitor-common"];

/// What decides the code, pinned here so that neither the workspace's profile for the agent nor the user's cargo
/// configuration can change the object.
const PROFILE: [(&str, &str); 8] = [
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "2"), // BTF is made from the debug information
    ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "false"),
    ("CARGO_PROFILE_RELEASE_INCREMENTAL", "false"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false"), // a panic would be refused by the verifier
    ("CARGO_PROFILE_RELEASE_STRIP", "none"),            // done below, with a tool that knows BPF
];

/// Compiles into `target` and returns the object.
pub(super) fn compile(tools: &Toolchain, target: &Path) -> Result<Vec<u8>> {
    // Fetched first: the sources' directory must exist for its name to be mapped.
    process::run(cargo(tools).args(["fetch", "--quiet", "--locked", "--target", TARGET]))?;
    let mut build = cargo(tools);
    build
        .args(["build", "--release", "--locked", "--package", "monitor-ebpf", "--target", TARGET])
        .args(["-Z", "build-std=core"])
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(target)?)
        .env("PATH", path(&tools.linker_directory)?);
    process::run(&mut build)?;
    strip(tools, target)
}

/// Where the products of such a build are kept, apart from those of the agent.
pub(super) fn target() -> PathBuf {
    workspace::target().join("ebpf")
}

/// Removes what earlier builds left of our own crates.
pub(super) fn forget(tools: &Toolchain, target: &Path) -> Result<()> {
    let mut clean = cargo(tools);
    clean.args(["clean", "--quiet", "--locked", "--release", "--target", TARGET]).args(OURS);
    process::run(clean.env("CARGO_TARGET_DIR", target))
}

fn cargo(tools: &Toolchain) -> Command {
    let mut command = workspace::cargo();
    command
        .env("RUSTC", &tools.rustc)
        .env("RUSTC_BOOTSTRAP", "1") // core from source on a stable compiler
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        .env_remove("LD_LIBRARY_PATH") // cargo set it for us: the libraries of another rustc
        .envs(PROFILE);
    command
}

/// Drops DWARF and the relocations of line numbers, which no loader reads; BTF, maps, programs and licence stay.
fn strip(tools: &Toolchain, target: &Path) -> Result<Vec<u8>> {
    let built = target.join(TARGET).join("release/defib-ebpf");
    let stripped = built.with_extension("bpf.o");
    let options = ["--strip-debug", "--remove-section=.rel.BTF.ext"];
    process::run(Command::new(&tools.objcopy).args(options).arg(&built).arg(&stripped))?;
    fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
}

/// The flags in cargo's own encoding, in which a path may have spaces.
///
/// Paths end up in BTF as the names of source files. The top of the checkout becomes `.`, which the linker can still
/// open (cargo runs it there): the verifier's log then quotes our source lines.
fn flags(target: &Path) -> Result<OsString> {
    let mut flags: Vec<OsString> =
        ["-Clink-arg=--btf", "-Cdebuginfo=2", "-Clinker=bpf-linker"].map(OsString::from).into();
    // Of several that fit, rustc takes the last one.
    flags.push(mapped(&workspace::root(), "."));
    flags.push(mapped(target, "/target"));
    for sources in registry_sources()? {
        flags.push(mapped(&sources, "/registry"));
    }
    Ok(flags.join("\u{1f}".as_ref()))
}

fn mapped(from: &Path, to: &str) -> OsString {
    let mut flag = OsString::from("--remap-path-prefix=");
    flag.push(from);
    flag.push("=");
    flag.push(to);
    flag
}

/// Where cargo unpacks what it downloads: a directory for each registry, its name different between cargo versions.
fn registry_sources() -> Result<Vec<PathBuf>> {
    let home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => env::home_dir().context("neither CARGO_HOME nor HOME is set")?.join(".cargo"),
    };
    let Ok(entries) = fs::read_dir(home.join("registry/src")) else { return Ok(Vec::new()) };
    entries.map(|entry| Ok(entry.context("cannot list cargo's registry")?.path())).collect()
}

fn path(first: &Path) -> Result<OsString> {
    let rest = env::var_os("PATH").unwrap_or_default();
    let all = iter::once(first.to_path_buf()).chain(env::split_paths(&rest));
    env::join_paths(all).with_context(|| format!("{} cannot be a part of PATH", first.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_spaces_is_one_flag() -> Result<()> {
        let flags = flags(Path::new("/a b/target"))?;
        let flags = flags.to_string_lossy();
        assert!(flags.split('\u{1f}').any(|flag| flag == "--remap-path-prefix=/a b/target=/target"), "{flags}");
        Ok(())
    }
}
