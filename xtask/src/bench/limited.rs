//! A memory cgroup with a limit, in which processes run out of memory; removed when dropped.

use std::{fs, os::unix::process::ExitStatusExt as _, path::PathBuf, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

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
        self.config_of(service, &["/bin/false"])
    }

    /// A configuration of a service in it that is started by this command.
    pub(super) fn config_of(&self, service: &str, start: &[&str]) -> String {
        format!("[[service]]\nname = \"{service}\"\ncommand = {{ start = {start:?}, cgroup = \"{}\" }}\n", self.path)
    }

    /// Ends what an agent has started in it, and would live on.
    fn end_all(&self) {
        for _ in 0..100 {
            let text = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
            let pids: Vec<_> = text.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                kill_process(pid, Signal::KILL).ok();
            }
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        self.end_all();
        if let Err(error) = fs::remove_dir(&self.directory) {
            crate::say::line(format_args!("left behind: {} ({error})", self.directory.display()));
        }
    }
}
