//! `cargo xtask ebpf`: from the kernel crate's sources to the object that the agent embeds.
//!
//! The built object is committed beside its sources, so that building the agent takes nothing but stable Rust. Only who
//! changes the kernel side needs this command: it [finds or brings the tools](toolchain), [compiles](compile), and
//! writes the object with a [manifest] of what it was made from. [`check`] is the other direction: does the
//! committed object follow from the sources?

mod check;
mod compile;
mod manifest;
pub(crate) mod toolchain;

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};

pub(crate) use check::check;
use manifest::Manifest;
use toolchain::Toolchain;

use crate::{needs, say, source_hash, workspace};

/// Build the kernel programs into the object that the agent embeds, or check that object
///
/// Needs Debian's rustc with its library sources, LLVM, and bpf-linker; installs what is missing (as root, with
/// apt-get) or lists the commands that would. Only a change of the kernel side asks for it: the built object is
/// committed. The same sources and tools give the same bytes in any directory.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail when the object is older than its sources, or is not what they build to
    ///
    /// The comparison byte for byte takes the tool versions that the manifest records; where they are not installed
    /// it is skipped and says so. With CI=true they are installed first.
    #[arg(long)]
    check: bool,
    /// Install nothing; where tools are missing, list them with the commands that bring them, and fail
    #[arg(long)]
    no_install: bool,
}

pub(crate) fn execute(args: &Args) -> Result<ExitCode> {
    if args.check {
        check(!args.no_install)?
    } else {
        build(!args.no_install)?
    }
    Ok(ExitCode::SUCCESS)
}

fn build(install: bool) -> Result<()> {
    let root = workspace::root();
    needs::provide(&toolchain::missing()?, install)?;
    let tools = Toolchain::find()?;
    let sources = source_hash::of_sources(&root)?;
    let object = compile::compile(&tools, &compile::target())?;
    let manifest = Manifest { sources, object: source_hash::of_bytes(&object), tools: tools.versions };
    replace(&root.join(source_hash::OBJECT), &object)?;
    replace(&root.join(source_hash::MANIFEST), manifest.to_text()?.as_bytes())?;
    say::line(format_args!(
        "{}: {} bytes, sources {}",
        source_hash::OBJECT,
        object.len(),
        manifest::short(&manifest.sources)
    ));
    Ok(())
}

/// Writes the file whole or not at all, and not when nothing changes: cargo would rebuild the agent for it.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let cannot_write = || format!("cannot write {}", path.display());
    let directory = path.parent().with_context(cannot_write)?;
    fs::create_dir_all(directory).with_context(cannot_write)?;
    let new = path.with_extension("new");
    fs::write(&new, bytes).with_context(cannot_write)?;
    fs::rename(&new, path).with_context(cannot_write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replace_makes_the_directory_and_leaves_no_other_file() -> Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join("object/it.o");
        replace(&path, b"one")?;
        replace(&path, b"two")?;
        assert_eq!(fs::read(&path)?, b"two");
        assert_eq!(fs::read_dir(root.path().join("object"))?.count(), 1);
        Ok(())
    }
}
