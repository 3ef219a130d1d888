//! The tools that build for the BPF target: which, where, and how to get them.
//!
//! Debian's rustc, not rustup's: the target has no prebuilt core, so its library sources are needed, and bpf-linker
//! must be linked with an LLVM of rustc's own major version. Debian packages all of these from one LLVM; a stable
//! toolchain from elsewhere brings none of them. `RUSTC_BOOTSTRAP` lets that rustc build core; a nightly is not needed.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    needs::{Mend, Need, Step},
    process,
    tool::{self, Tool},
};

/// LLVM's major version in [`PACKAGES`] and in the feature that bpf-linker is built with; rustc's must be the same.
const LLVM_MAJOR: &str = "22";
/// Where the package of that version installs.
const LLVM: &str = "/usr/lib/llvm-22";
/// The version of bpf-linker that is known to work with it.
const BPF_LINKER: Tool = Tool { name: "bpf-linker", version: "0.13.0" };
/// Debian packages, with what each is for.
const PACKAGES: [(&str, &str); 4] = [
    ("rustc-web", "compiles the kernel programs"),
    ("rust-web-src", "core, which the BPF target has no built version of"),
    ("llvm-22-dev", "bpf-linker links against it"),
    ("libpolly-22-dev", "bpf-linker links against it"),
];

/// What decides the object's bytes besides the sources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Versions {
    pub(crate) rustc: String,
    pub(crate) bpf_linker: String,
    pub(crate) llvm: String,
    pub(crate) rust_src: String,
}

impl Versions {
    /// How `other` differs, or nothing.
    pub(super) fn difference(&self, other: &Self) -> Option<String> {
        // Taken apart so that a new field cannot be forgotten here.
        let Self { rustc, bpf_linker, llvm, rust_src } = self;
        let pairs = [
            ("rustc", rustc, &other.rustc),
            ("bpf-linker", bpf_linker, &other.bpf_linker),
            ("LLVM", llvm, &other.llvm),
            ("rust-src", rust_src, &other.rust_src),
        ];
        let differing = pairs.iter().filter(|(_, ours, theirs)| ours != theirs);
        let words: Vec<_> =
            differing.map(|(name, ours, theirs)| format!("{name} here is `{theirs}`, not `{ours}`")).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }
}

/// A complete set of tools.
pub(super) struct Toolchain {
    pub(super) rustc: PathBuf,
    /// The directory of `bpf-linker`, for `PATH`.
    pub(super) linker_directory: PathBuf,
    pub(super) objcopy: PathBuf,
    pub(super) versions: Versions,
}

impl Toolchain {
    /// Finds what [`missing`] found present.
    pub(super) fn find() -> Result<Self> {
        let rustc = debian_rustc()?;
        let about = process::output(Command::new(&rustc).arg("-vV"))?;
        let line = |prefix: &str| about.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned);
        let llvm = line("LLVM version: ").context("rustc does not say which LLVM it has")?;
        if llvm.split('.').next() != Some(LLVM_MAJOR) {
            bail!(
                "{} has LLVM {llvm}, but bpf-linker is built for LLVM {LLVM_MAJOR}: bring both to one version in {}",
                rustc.display(),
                file!()
            );
        }
        let (Some(version), Some(host)) = (about.lines().next(), line("host: ")) else {
            bail!("{} does not say its version and host", rustc.display());
        };
        let llvm_config = Path::new(LLVM).join("bin/llvm-config");
        Ok(Self {
            versions: Versions {
                // The host is in the hash that cargo gives each crate, and so in symbol names.
                rustc: format!("{version}, {host}"),
                bpf_linker: linker_version().context("bpf-linker is missing")?,
                llvm: process::output(Command::new(llvm_config).arg("--version"))?,
                rust_src: package_version("rust-web-src")?.context("rust-web-src is missing")?,
            },
            rustc,
            linker_directory: tool::directory(),
            objcopy: Path::new(LLVM).join("bin/llvm-objcopy"),
        })
    }
}

/// What is not installed yet.
pub(crate) fn missing() -> Result<Vec<Need>> {
    let mut needs = Vec::new();
    for (package, why) in PACKAGES {
        if package_version(package)?.is_none() {
            let mend = Mend::Packages(vec![package]);
            needs.push(Need { what: format!("Debian package {package}"), why, mend });
        }
    }
    if linker_version().as_deref() != Some(BPF_LINKER.version) {
        needs.push(Need {
            what: format!("bpf-linker {}, built against LLVM {LLVM_MAJOR}", BPF_LINKER.version),
            why: "links the kernel programs and writes their BTF",
            mend: Mend::Command(linker_install()),
        });
    }
    Ok(needs)
}

/// Ours, never the user's own: a copy of theirs might be linked with another LLVM.
fn linker_install() -> Step {
    let feature = format!("llvm-{LLVM_MAJOR}");
    BPF_LINKER.install().and(["--features", &feature, "--no-default-features"]).with("LLVM_PREFIX", LLVM)
}

/// The version of our copy; none also when it cannot start, for example after its LLVM was removed.
fn linker_version() -> Option<String> {
    let answer = process::output(Command::new(BPF_LINKER.ours()).arg("--version")).ok()?;
    answer.strip_prefix("bpf-linker ").map(str::to_owned)
}

/// The compiler that the package installed, whatever else `PATH` has under that name.
fn debian_rustc() -> Result<PathBuf> {
    let files = process::output(Command::new("dpkg").args(["-L", "rustc-web"]))?;
    let rustc = files.lines().find(|path| path.ends_with("/bin/rustc"));
    rustc.map(PathBuf::from).context("the package rustc-web has no bin/rustc")
}

/// The installed version of a Debian package.
fn package_version(package: &str) -> Result<Option<String>> {
    if process::find("dpkg-query").is_none() {
        return Ok(None);
    }
    let mut query = Command::new("dpkg-query");
    let answer = process::output(query.args(["-W", "-f", "${db:Status-Status} ${Version}", package]));
    Ok(answer.ok().and_then(|answer| answer.strip_prefix("installed ").map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_names_the_tool_and_both_versions() {
        let version = |llvm: &str| Versions {
            rustc: "r".into(),
            bpf_linker: "b".into(),
            llvm: llvm.into(),
            rust_src: "s".into(),
        };
        assert_eq!(version("22.1").difference(&version("22.1")), None);
        let difference = version("22.1").difference(&version("23.0"));
        assert_eq!(difference.as_deref(), Some("LLVM here is `23.0`, not `22.1`"));
    }

    #[test]
    fn the_linker_is_built_for_the_llvm_that_is_installed() {
        let step = linker_install().to_string();
        assert!(step.starts_with("LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker "), "{step}");
        assert!(step.contains("--features llvm-22 "), "{step}");
        assert!(LLVM.ends_with(LLVM_MAJOR));
    }
}
