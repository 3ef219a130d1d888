//! Does the committed object follow from the sources?
//!
//! Three answers, each stronger than the one before: the sources are those that the manifest records; the object is
//! the one that it records; building again gives the same bytes. The last one takes the recorded tool versions.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use super::{
    compile,
    manifest::{Manifest, short},
    toolchain::{self, Toolchain},
};
use crate::{needs, say, source_hash, workspace};

/// Fails when the object is stale or altered. `install` lets a build server bring the tools.
pub(crate) fn check(install: bool) -> Result<()> {
    let root = workspace::root();
    let manifest = Manifest::read(&root)?;
    let object = recorded(&root, &manifest)?;
    say::line(format_args!("{}: built from these sources ({})", source_hash::OBJECT, short(&manifest.sources)));
    if workspace::in_ci() {
        needs::provide(&toolchain::missing()?, install)?;
    }
    match usable(&manifest)? {
        Ok(tools) => compare(&tools, &object),
        Err(reason) => {
            say::line(format_args!("not rebuilt, not compared byte for byte: {reason}"));
            Ok(())
        }
    }
}

/// The committed object, when manifest, sources and object agree.
fn recorded(root: &Path, manifest: &Manifest) -> Result<Vec<u8>> {
    let sources = source_hash::of_sources(root)?;
    if sources != manifest.sources {
        bail!(
            "{} is stale: it was built from sources {}, these are {}: run `cargo xtask ebpf`",
            source_hash::OBJECT,
            short(&manifest.sources),
            short(&sources)
        );
    }
    let object = fs::read(root.join(source_hash::OBJECT));
    let object = object.with_context(|| format!("{}: run `cargo xtask ebpf`", source_hash::OBJECT))?;
    if source_hash::of_bytes(&object) != manifest.object {
        bail!(
            "{} is not the object that {} describes: run `cargo xtask ebpf`",
            source_hash::OBJECT,
            source_hash::MANIFEST
        );
    }
    Ok(object)
}

/// The tools, if they are those that built the object, else why not.
fn usable(manifest: &Manifest) -> Result<Result<Toolchain, String>> {
    let missing: Vec<_> = toolchain::missing()?.into_iter().map(|need| need.what).collect();
    if !missing.is_empty() {
        return Ok(Err(format!("missing here: {}", missing.join(", "))));
    }
    let tools = Toolchain::find()?;
    Ok(match manifest.tools.difference(&tools.versions) {
        Some(difference) => Err(difference),
        None => Ok(tools),
    })
}

/// Builds our two crates anew: no leftover of an earlier build can hide a difference. Their dependencies may be left
/// over, the lock file holds those to a checksum.
fn compare(tools: &Toolchain, committed: &[u8]) -> Result<()> {
    let target = compile::target();
    compile::forget(tools, &target)?;
    let built = compile::compile(tools, &target)?;
    if built != committed {
        bail!(
            "{} is not what its sources build to with the recorded tools (sha256 {}, not {}): run `cargo xtask ebpf`",
            source_hash::OBJECT,
            short(&source_hash::of_bytes(&built)),
            short(&source_hash::of_bytes(committed))
        );
    }
    say::line(format_args!("{}: rebuilt, the same {} bytes", source_hash::OBJECT, built.len()));
    Ok(())
}
