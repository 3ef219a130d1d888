//! A memory cgroup with a limit, in which processes run out of memory; removed when dropped.

use std::{fs, os::unix::process::ExitStatusExt as _, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{
    Programs,
    sleepers::{make, memory_hierarchy},
};

/// What a victim may take before it is killed.
const LIMIT: u64 = 16 << 20;
const SIGKILL: i32 = 9;

/// See the module.
pub(super) struct Limited {
    directory: PathBuf,
    path: String,
}

impl Limited {
    /// With 16 MiB of memory, and no swap.
    pub(super) fn new() -> Result<Self> {
        let (mount, is_v1) = memory_hierarchy();
        let path = format!("/defib-bench-limited-{}", std::process::id());
        let directory = mount.join(&path[1..]);
        if !is_v1 {
            fs::write(mount.join("cgroup.subtree_control"), "+memory")
                .context("cannot pass the memory controller on")?;
        }
        make(&directory)?;
        let limited = Self { directory, path };
        let files: [(&str, u64); 2] = if is_v1 {
            [("memory.limit_in_bytes", LIMIT), ("memory.memsw.limit_in_bytes", LIMIT)]
        } else {
            [("memory.max", LIMIT), ("memory.swap.max", 0)]
        };
        for (name, value) in files {
            let file = limited.directory.join(name);
            // Swap is not accounted for everywhere.
            if file.exists() {
                fs::write(&file, value.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
        Ok(limited)
    }

    /// Has a process run out of memory in it, and waits until that was killed.
    pub(super) fn run_out(&self, programs: &Programs) -> Result<()> {
        let status = programs.victim_in(&self.directory).arg("leak").status().context("cannot start a victim")?;
        ensure!(status.signal() == Some(SIGKILL), "a victim of the OOM killer ended with {status}");
        Ok(())
    }

    /// A configuration that looks after it, and starts nothing.
    pub(super) fn config(&self, service: &str) -> String {
        format!(
            "[[service]]\nname = \"{service}\"\ncommand = {{ start = [\"/bin/false\"], cgroup = \"{}\" }}\n",
            self.path
        )
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.directory) {
            crate::say::line(format_args!("left behind: {} ({error})", self.directory.display()));
        }
    }
}
