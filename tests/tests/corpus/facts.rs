//! What this machine has, asked of the machine itself.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use tests::cgroup::{Cgroup, memory_hierarchy};

/// For cases that can happen everywhere.
pub(crate) fn always() -> Option<String> {
    None
}

/// systemd manages this machine.
pub(crate) fn no_systemd() -> Option<String> {
    let runs = fs::read_to_string("/proc/1/comm").is_ok_and(|comm| comm.trim() == "systemd");
    (!runs).then(|| "systemd is not PID 1 here".to_owned())
}

/// This machine is one that `cargo xtask vm` has started, with nothing on it but the tests: the only place for a death
/// that could be somebody else's.
pub(crate) fn not_our_guest() -> Option<String> {
    let ours = fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.contains(" defib_vm="));
    let reason = "only in a machine of 'cargo xtask vm': it could be another process's death";
    no_systemd().or_else(|| (!ours).then(|| reason.to_owned()))
}

/// Why the kernel cannot mark a page of memory as broken; a marked page is lost to the machine.
pub(crate) fn no_broken_memory() -> Option<String> {
    // The row exists where the kernel has CONFIG_MEMORY_FAILURE.
    let counts = fs::read_to_string("/proc/meminfo").is_ok_and(|text| text.contains("HardwareCorrupted:"));
    let reason = "this kernel cannot be told that memory is broken (CONFIG_MEMORY_FAILURE)";
    not_our_guest().or_else(|| (!counts).then(|| reason.to_owned()))
}

/// The memory controller is on cgroup v2.
pub(crate) fn no_v2() -> Option<String> {
    let (_, v2) = memory_hierarchy();
    (!v2).then(|| "memory.oom.group is cgroup v2 only".to_owned())
}

/// Where cgroup v2 is mounted, with the memory controller or without.
pub(crate) fn unified() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines.find(|columns| columns.get(2) == Some(&"cgroup2"))?.get(1).map(PathBuf::from)
}

/// A cgroup of v2 can be killed as a whole.
pub(crate) fn no_cgroup_kill() -> Option<String> {
    let Some(mount) = unified() else { return Some("cgroup v2 is not mounted".to_owned()) };
    let has = Cgroup::at(&mount).directory.join("cgroup.kill").exists();
    (!has).then(|| "cgroup.kill came with 5.14".to_owned())
}

/// A core is a file in the directory of the process that dies.
pub(crate) fn no_plain_core() -> Option<String> {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let plain = !pattern.starts_with('|') && !pattern.contains('/') && !pattern.trim().is_empty();
    (!plain).then(|| format!("kernel.core_pattern is '{}', which leaves this case", pattern.trim()))
}

/// The path of a program.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let usual = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"].map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    usual.into_iter().chain(env::split_paths(&path)).map(|place| place.join(name)).find(|path| path.is_file())
}

/// All of these are installed.
pub(crate) fn lacks(programs: &[&str]) -> Option<String> {
    programs.iter().find(|name| program(name).is_none()).map(|name| format!("{name} is not installed"))
}

/// The kernel has this file.
pub(crate) fn lacks_file(path: &str) -> Option<String> {
    (!Path::new(path).exists()).then(|| format!("this kernel has no {path}"))
}

/// The machine's memory in KiB.
pub(crate) fn memory_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("readable");
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).expect("it is counted");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
