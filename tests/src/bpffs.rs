//! A bpffs of a test's own, unmounted when it is dropped.

use std::{path::PathBuf, process::Command};

/// See the module.
#[derive(Debug)]
pub struct BpfFs(tempfile::TempDir);

impl BpfFs {
    /// A new one.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn mount() -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let status = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(place.path()).status().expect("mount starts");
        assert!(status.success(), "a bpffs can be mounted");
        Self(place)
    }

    /// Where an agent may pin: a directory that is not there yet.
    pub fn pin_dir(&self) -> PathBuf {
        self.0.path().join("defib")
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            println!("left behind: {}", self.0.path().display());
        }
    }
}
