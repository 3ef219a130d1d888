//! Applies the limits of the packaged unit (`deploy/systemd/defib.service`) without systemd: cgroups with its limits of
//! memory, tasks and processor time, and systemd's limit of open files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::cgroup::{Cgroup, memory_hierarchy};

const UNIT: &str = include_str!("../../deploy/systemd/defib.service");
/// `DefaultLimitNOFILE=` (systemd-system.conf(5)), soft and hard, since the unit sets none.
const FILES: (u32, u32) = (1024, 524_288);

/// Hierarchies of cgroup v1 that limit tasks and processor time.
const PIDS: &str = "/sys/fs/cgroup/pids";
const CPU: &str = "/sys/fs/cgroup/cpu";

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
        if is_v2 {
            fs::write(mount.join("cgroup.subtree_control"), "+pids +cpu").expect("the controllers can be passed on");
            fs::write(cgroups[0].directory.join("pids.max"), tasks).expect("the limit of tasks can be set");
            fs::write(cgroups[0].directory.join("cpu.weight"), setting("CPUWeight")).expect("the weight can be set");
            return Self { cgroups };
        }
        cgroups.extend(limited(PIDS, "pids.max", tasks));
        cgroups.extend(weighed());
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

/// Gives threads of a test the agent's weight for the processors: what asks an agent from another host does not compete with what
/// runs on the agent's. Does nothing on cgroup v2, which does not take single threads so easily.
#[derive(Debug)]
pub struct Elsewhere(Option<Cgroup>);

impl Elsewhere {
    /// Makes the cgroup. It has to outlive the threads.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new() -> Self {
        Self(if memory_hierarchy().1 { None } else { weighed() })
    }

    /// Takes the calling thread in.
    ///
    /// # Panics
    /// When the kernel refuses it.
    pub fn enter(&self) {
        if let Some(cgroup) = &self.0 {
            let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
            fs::write(cgroup.directory.join("tasks"), thread).expect("the thread can be moved");
        }
    }
}

impl Default for Elsewhere {
    fn default() -> Self {
        Self::new()
    }
}

/// A new cgroup with a limit in a hierarchy of cgroup v1, where that is mounted.
fn limited(hierarchy: &str, file: &str, value: &str) -> Option<Cgroup> {
    let cgroup = Path::new(hierarchy).exists().then(|| Cgroup::at(Path::new(hierarchy)))?;
    fs::write(cgroup.directory.join(file), value).expect("the limit can be set");
    Some(cgroup)
}

/// One with the unit's weight: a weight of 100 is 1024 shares.
fn weighed() -> Option<Cgroup> {
    let weight: u64 = setting("CPUWeight").parse().expect("a number");
    limited(CPU, "cpu.shares", &(weight * 1024 / 100).to_string())
}

/// Cgroups for processes that must not take the agent's tasks and processor time: on v1, children of an agent stay in its cgroup
/// of every hierarchy but memory's.
pub fn outside() -> Vec<PathBuf> {
    let roots = [PIDS, CPU].map(PathBuf::from);
    if memory_hierarchy().1 { Vec::new() } else { roots.into_iter().filter(|root| root.exists()).collect() }
}

fn setting(name: &str) -> &'static str {
    let line = UNIT.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("the unit says no {name}="))
}
