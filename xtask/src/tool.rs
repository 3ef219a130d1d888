//! Programs that cargo builds for us, in the target directory beside other build products.

use std::path::PathBuf;

use crate::{needs::Step, process, workspace};

/// One of them, in the version that is known to work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
}

impl Tool {
    /// Where ours is, or would be.
    pub(crate) fn ours(self) -> PathBuf {
        directory().join(self.name)
    }

    /// Ours, else the user's own.
    pub(crate) fn find(self) -> Option<PathBuf> {
        Some(self.ours()).filter(|path| path.is_file()).or_else(|| process::find(self.name))
    }

    /// What builds it.
    pub(crate) fn install(self) -> Step {
        let root = root().display().to_string();
        Step::new(["cargo", "install", self.name, "--version", self.version, "--locked", "--root", &root])
    }
}

/// Their directory, for `PATH`.
pub(crate) fn directory() -> PathBuf {
    root().join("bin")
}

fn root() -> PathBuf {
    workspace::target().join("tools")
}
