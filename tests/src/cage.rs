//! Applies the limits of the packaged unit (`deploy/systemd/defib.service`) without systemd: cgroups with its limits of
//! memory and tasks, and systemd's limit of open files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::cgroup::{Cgroup, memory_hierarchy};

const UNIT: &str = include_str!("../../deploy/systemd/defib.service");
/// `DefaultLimitNOFILE=` (systemd-system.conf(5)), soft and hard, since the unit sets none.
const FILES: (u32, u32) = (1024, 524_288);

/// Cgroups with the limits of the packaged unit.
#[derive(Debug)]
pub struct Cage {
    cgroups: Vec<Cgroup>,
}

impl Cage {
    /// New cgroups with the unit's limits.
    ///
    /// # Panics
    /// When they cannot be made, or the unit's limits cannot be read.
    pub fn new() -> Self {
        let memory = setting("MemoryMax").strip_suffix('M').and_then(|mib| mib.parse::<u64>().ok()).expect("MiB");
        let tasks = setting("TasksMax");
        let mut cgroups = vec![Cgroup::new(Some(memory << 20))];
        let (mount, is_v2) = memory_hierarchy();
        let pids = Path::new("/sys/fs/cgroup/pids");
        if is_v2 {
            fs::write(mount.join("cgroup.subtree_control"), "+pids").expect("the pids controller can be passed on");
        } else if pids.exists() {
            cgroups.push(Cgroup::at(pids));
        }
        let limited = &cgroups[cgroups.len() - 1];
        fs::write(limited.directory.join("pids.max"), tasks).expect("the limit of tasks can be set");
        Self { cgroups }
    }

    /// A command that starts the program within these limits.
    pub fn command(&self, program: &Path) -> Command {
        let mut script = String::new();
        for cgroup in &self.cgroups {
            script += &format!("echo 0 > '{}' || exit 99; ", cgroup.procs().display());
        }
        let (soft, hard) = FILES;
        // Root in a sandbox cannot raise these limits, only lower them, which is enough.
        script += &format!("{{ echo {} > /proc/self/oom_score_adj; }} 2> /dev/null; ", setting("OOMScoreAdjust"));
        script += &format!("ulimit -Hn {hard} 2> /dev/null; ulimit -Sn {soft}; exec \"$0\" \"$@\"");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).arg(program);
        command
    }

    /// OOM kills in it.
    pub fn oom_kills(&self) -> u64 {
        self.cgroups[0].oom_kills().unwrap_or(0)
    }

    /// Refused tasks; `None` where the kernel does not count them.
    pub fn refused_tasks(&self) -> Option<u64> {
        let counts = |cgroup: &Cgroup| crate::cgroup::counter(&cgroup.directory.join("pids.events"), "max");
        self.cgroups.iter().find_map(counts)
    }
}

impl Default for Cage {
    fn default() -> Self {
        Self::new()
    }
}

/// Cgroups for processes that must not count as the agent's tasks: on v1, children of an agent stay in its cgroup of
/// every hierarchy but memory's.
pub fn outside() -> Vec<PathBuf> {
    let pids = PathBuf::from("/sys/fs/cgroup/pids");
    if memory_hierarchy().1 || !pids.exists() { Vec::new() } else { vec![pids] }
}

fn setting(name: &str) -> &'static str {
    let line = UNIT.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("the unit says no {name}="))
}
