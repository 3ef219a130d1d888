//! Services that do nothing but live: processes that sleep, each in a memory cgroup of its own; gone when dropped.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::say;

/// See the module.
pub(super) struct Sleepers {
    parent: PathBuf,
    children: Vec<Child>,
}

impl Sleepers {
    /// So many of them.
    pub(super) fn start(count: usize) -> Result<Self> {
        let (mount, _) = memory_hierarchy();
        let parent = mount.join(format!("defib-bench-{}-{count}", std::process::id()));
        make(&parent)?;
        let mut sleepers = Self { parent, children: Vec::new() };
        let control = sleepers.parent.join("cgroup.subtree_control");
        if control.exists() {
            fs::write(&control, "+memory").with_context(|| format!("cannot write {}", control.display()))?;
        }
        for number in 0..count {
            let directory = sleepers.directory(number);
            make(&directory)?;
            let child =
                Command::new("sleep").arg("100000").stdin(Stdio::null()).spawn().context("cannot start sleep")?;
            let id = child.id();
            sleepers.children.push(child);
            fs::write(directory.join("cgroup.procs"), id.to_string())
                .with_context(|| format!("cannot move a process to {}", directory.display()))?;
        }
        Ok(sleepers)
    }

    /// The cgroup of one.
    pub(super) fn directory(&self, number: usize) -> PathBuf {
        self.parent.join(format!("s{number}"))
    }

    /// A configuration that looks after all of them and starts none.
    pub(super) fn config(&self) -> String {
        let name = self.parent.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut config = format!("[agent]\nmax_services = {}\n", self.children.len().max(1));
        for number in 0..self.children.len() {
            write!(
                config,
                "[[service]]\nname = \"s{number}\"\n\
                 command = {{ start = [\"/bin/false\"], cgroup = \"/{name}/s{number}\" }}\n"
            )
            .ok();
        }
        config
    }
}

/// Where the memory controller's hierarchy is mounted, and whether it is version 1.
pub(super) fn memory_hierarchy() -> (&'static Path, bool) {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    let is_v1 = v1.join("cgroup.procs").exists();
    (if is_v1 { v1 } else { Path::new("/sys/fs/cgroup") }, is_v1)
}

/// Makes a cgroup.
pub(super) fn make(directory: &Path) -> Result<()> {
    fs::create_dir(directory).with_context(|| format!("cannot make {}", directory.display()))
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
        for number in 0..self.children.len() {
            fs::remove_dir(self.directory(number)).ok();
        }
        if let Err(error) = fs::remove_dir(&self.parent) {
            say::line(format_args!("left behind: {} ({error})", self.parent.display()));
        }
    }
}
