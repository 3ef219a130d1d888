//! Starts the program that attacks as an unprivileged user (`src/bin/attacker/`), and makes what such a user has: a
//! directory, and a cgroup delegated as systemd does with `Delegate=`.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{
    cgroup::{Cgroup, memory_hierarchy},
    victim::binary,
};

/// The user that attacks.
pub const NOBODY: u32 = 65534;

/// A running attack; dropping it kills all processes of its group.
#[derive(Debug)]
pub struct Attacker {
    child: Child,
}

impl Attacker {
    /// Starts an attack in these cgroups, and returns when it is under way.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(enter: &[&Path], words: &[&str]) -> Self {
        let mut child = command(enter, words)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the attacker starts");
        let out = child.stdout.take().expect("piped");
        let attacker = Self { child };
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).expect("it can be read");
        assert_eq!(line, "ready\n", "the attack {words:?} is under way");
        attacker
    }

    /// Its first process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process_group(group, Signal::KILL).ok();
        }
        self.child.wait().ok();
    }
}

/// Runs an attack that ends by itself.
///
/// # Panics
/// When it cannot be started, or fails.
pub fn attack(enter: &[&Path], words: &[&str]) -> Output {
    let output = command(enter, words).stdin(Stdio::null()).output().expect("the attacker starts");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn command(enter: &[&Path], words: &[&str]) -> Command {
    let mut command = Command::new(binary("attacker"));
    for cgroup in enter {
        command.arg("--enter").arg(cgroup);
    }
    command.args(words);
    command
}

/// A directory that belongs to the attacker.
///
/// # Panics
/// When it cannot be made.
pub fn directory() -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("a directory");
    chown(place.path(), Some(NOBODY), Some(NOBODY)).expect("it can be handed over");
    place
}

/// A cgroup delegated to the attacker; dropping it kills its processes and removes it with all below it.
#[derive(Debug)]
pub struct Delegated {
    cgroup: Cgroup,
}

impl Delegated {
    /// A new one below the root.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new() -> Self {
        Self::of(Cgroup::new(None))
    }

    /// A new one below `parent`, which must live longer.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn below(parent: &Self, name: &str) -> Self {
        Self::of(parent.cgroup.child(name))
    }

    fn of(cgroup: Cgroup) -> Self {
        hand_over(&cgroup.directory);
        Self { cgroup }
    }

    /// Enables the memory controller for the cgroups below (needed on v2).
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn pass_memory_on(&self) {
        let control = self.cgroup.directory.join("cgroup.subtree_control");
        if control.exists() {
            fs::write(control, "+memory").expect("the memory controller can be passed on");
        }
    }

    /// A new cgroup below it for the attacker's first processes: on v2 a cgroup that enables controllers below can have
    /// none.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn entrance(&self) -> PathBuf {
        let place = self.cgroup.directory.join("entrance");
        if !place.exists() {
            fs::create_dir(&place).expect("a cgroup can be made");
            hand_over(&place);
        }
        place
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.cgroup.directory
    }

    /// Its path below the root of the hierarchy.
    pub fn path(&self) -> &str {
        &self.cgroup.path
    }

    /// A path below it, as an argument of the attacker.
    pub fn at(&self, below: &str) -> String {
        self.cgroup.directory.join(below).display().to_string()
    }
}

impl Default for Delegated {
    fn default() -> Self {
        Self::new()
    }
}

/// Delegates a cgroup as systemd does with `Delegate=` (cgroups(7), "Delegation"): the directory, and the files that
/// move processes.
///
/// # Panics
/// When the kernel refuses.
pub fn hand_over(directory: &Path) {
    chown(directory, Some(NOBODY), Some(NOBODY)).expect("a cgroup can be handed over");
    for file in ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads", "tasks"] {
        let file = directory.join(file);
        if file.exists() {
            chown(file, Some(NOBODY), Some(NOBODY)).expect("a cgroup's file can be handed over");
        }
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        // `Cgroup` removes the directory itself.
        clear(&self.cgroup.directory, true);
    }
}

/// Kills all processes in a cgroup and below it, and removes the cgroups below it; with `keep` not the cgroup itself.
pub fn clear(directory: &Path, keep: bool) {
    // Most cgroups are empty.
    if !keep && fs::remove_dir(directory).is_ok() {
        return;
    }
    for _ in 0..1000 {
        let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            kill_process(pid, Signal::KILL).ok();
        }
        for child in children(directory) {
            clear(&child, false);
        }
        let gone = if keep { members.is_empty() } else { fs::remove_dir(directory).is_ok() };
        if gone || !directory.exists() {
            return;
        }
        sleep(Duration::from_millis(10));
    }
    println!("left behind: {}", directory.display());
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// One cgroup of the CPU controller for all attackers, as systemd has one slice for all users: the agent and the
/// services have their own share beside it. On v2 the attackers' delegated cgroup does that already.
///
/// # Panics
/// When it cannot be made.
pub fn share() -> Option<Cgroup> {
    let mount = Path::new("/sys/fs/cgroup/cpu");
    (!memory_hierarchy().1 && mount.join("cpu.shares").exists()).then(|| Cgroup::at(mount))
}
