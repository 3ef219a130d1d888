//! What the committed object was made from, kept beside it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::toolchain::Versions;
use crate::source_hash;

/// `defib.toml`. The agent's build script reads `sources` and `object` too.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// [`source_hash::of_sources`] at the time of the build.
    pub(super) sources: String,
    /// SHA-256 of the object.
    pub(super) object: String,
    /// What built it.
    pub(super) tools: Versions,
}

impl Manifest {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let fault = || format!("{}, which `cargo xtask ebpf` writes", source_hash::MANIFEST);
        let text = fs::read_to_string(root.join(source_hash::MANIFEST)).with_context(fault)?;
        toml::from_str(&text).with_context(fault)
    }

    pub(super) fn to_text(&self) -> Result<String> {
        let body = toml::to_string(self).context("cannot write the manifest")?;
        Ok(format!("# Written by `cargo xtask ebpf`: what the object beside it was made from.\n{body}"))
    }
}

/// Enough of a hash for people.
pub(super) fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() -> Result<()> {
        let root = tempfile::tempdir()?;
        let manifest = Manifest {
            sources: source_hash::of_bytes(b"sources"),
            object: source_hash::of_bytes(b"object"),
            tools: Versions {
                rustc: "rustc 1.0.0 (x)".into(),
                bpf_linker: "0.1.0".into(),
                llvm: "1.2.3".into(),
                rust_src: "1.0.0+dfsg1".into(),
            },
        };
        super::super::replace(&root.path().join(source_hash::MANIFEST), manifest.to_text()?.as_bytes())?;
        assert_eq!(Manifest::read(root.path())?, manifest);
        Ok(())
    }

    #[test]
    fn an_absent_manifest_says_what_to_run() {
        let error = Manifest::read(Path::new("/nonexistent")).err().map(|error| format!("{error:#}"));
        assert!(error.is_some_and(|error| error.contains("which `cargo xtask ebpf` writes: ")));
    }
}
