//! A directory in a bpffs whose files keep the programs running while no agent does: for hosts without a service manager that
//! keeps descriptors.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FsWord, statfs};

use super::bpf;
use crate::host::{
    bounded::{self, Bounded},
    inherited::Named,
};

/// `BPF_FS_MAGIC` (uapi magic.h).
const BPF_FS: FsWord = 0xcafe_4a11;
/// Names read of our own directory, which has some forty.
const PINS: usize = 1024;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Pins(PathBuf);

impl Pins {
    /// The pins in `directory`, which is made when it is missing.
    ///
    /// # Errors
    /// When it is not in a bpffs, or others than root may write there.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let shown = directory.display();
        if let Err(error) = DirBuilder::new().mode(0o700).create(directory)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| format!("cannot make {shown}"));
        }
        let is_bpffs = statfs(directory).is_ok_and(|found| found.f_type == BPF_FS);
        ensure!(
            is_bpffs,
            "{shown} is not in a bpffs: mount one ('mount -t bpf bpf /sys/fs/bpf'), or give a directory in it"
        );
        let found = fs::symlink_metadata(directory).with_context(|| format!("cannot look at {shown}"))?;
        ensure!(
            found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0,
            "{shown} must be a directory of the agent's user with mode 0700: what is pinned there is trusted"
        );
        Ok(Self(directory.to_owned()))
    }

    /// Takes what an earlier agent has pinned.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn take(&self) -> Result<Vec<Named>> {
        let shown = self.0.display();
        let mut taken = Vec::new();
        for path in bounded::entries(&self.0, PINS).with_context(|| format!("cannot read {shown}"))?.beginning() {
            let descriptor = bpf::pinned(&path).with_context(|| format!("cannot take {}", path.display()))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            taken.push((name, descriptor));
        }
        Ok(taken)
    }

    /// Pins one in the place of whatever has its name.
    ///
    /// # Errors
    /// When that is refused.
    pub(crate) fn keep(&self, (name, descriptor): &Named) -> Result<()> {
        let path = self.0.join(name);
        let pinned = match bpf::pin(descriptor, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&path).and_then(|()| bpf::pin(descriptor, &path))
            }
            done => done,
        };
        pinned.with_context(|| format!("cannot pin {}", path.display()))
    }

    /// Names of what is pinned.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = bounded::entries(&self.0, PINS).map(Bounded::beginning).unwrap_or_default();
        entries.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect()
    }

    /// Removes one.
    pub(crate) fn remove(&self, name: &str) {
        if let Err(error) = fs::remove_file(self.0.join(name)) {
            tracing::warn!("cannot remove {}: {error}", self.0.join(name).display());
        }
    }

    /// Removes all, and the directory: for a clean end, after which nothing shall run on.
    pub(crate) fn clear(&self) {
        for name in self.names() {
            self.remove(&name);
        }
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}
