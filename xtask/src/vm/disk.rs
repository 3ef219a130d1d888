//! ext4 images made from a directory, without mounting anything.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::logged;
use crate::process;

/// Makes the image `image` with the content of `dir` and at least `free_mib` MiB of free space (a sparse file).
///
/// No journal: every writer of such an image throws its writes away.
pub(super) fn from_directory(dir: &Path, image: &Path, free_mib: u64, log: &Path) -> Result<()> {
    let usage = process::output(Command::new("du").args(["--summarize", "--block-size=1M"]).arg(dir))?;
    let used = usage.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    let used = used.with_context(|| format!("`du` printed `{usage}` instead of a size"))?;
    let size = format!("{}M", used + used / 8 + free_mib + 16); // an eighth for inode tables and directories
    // Not every PATH of a user has sbin.
    logged::run(
        Command::new("/sbin/mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "root_owner=0:0", "-d"])
            .args([dir, image])
            .arg(size),
        log,
    )
    .with_context(|| format!("cannot make the disk image {}", image.display()))
}
