//! What a cgroup's own files say of its memory, in both versions.

use std::str::FromStr;

use super::{
    bounded::{self, Bounded, FIGURES},
    cgroup::{Hierarchy, Version, ancestry},
    process,
};

/// Bytes read of `memory.stat`: some sixty rows in either version, 2 to 6 KiB. The kernel gives it one page, 64 KiB on
/// some machines.
const STAT: usize = 64 * 1024;

/// Where v1 begins to mean "no limit": it says `PAGE_COUNTER_MAX` pages, just below 2^63 bytes.
const NO_LIMIT_V1: u64 = 1 << 62;

/// What of `memory.stat` no reclaim frees, in each version. v2 counts shared memory apart from anonymous memory, and v1 does
/// too (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst).
const HELD_V2: [&str; 6] = ["anon", "shmem", "slab_unreclaimable", "kernel_stack", "pagetables", "sock"];
const HELD_V1: [&str; 3] = ["total_rss", "total_shmem", "total_swap"];

impl Hierarchy {
    /// The memory limit of a cgroup itself in bytes; `None` without one, or when it cannot be read.
    pub(crate) fn memory_limit(&self, path: &str) -> Option<u64> {
        let name = match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        // v2 says `max`; v1 the largest number of pages that it can count.
        let limit = self.number(path, name)?;
        (limit < NO_LIMIT_V1).then_some(limit)
    }

    /// The least memory limit of a cgroup and those above it.
    pub(crate) fn least_memory_limit(&self, path: &str) -> Option<u64> {
        ancestry(path).filter_map(|path| self.memory_limit(path)).min()
    }

    /// Memory of a cgroup and those below it that no reclaim frees, swap included, in bytes: what a leak makes grow, and what
    /// an OOM kill is about. Of its processes, where the controller does not count for it. `None` where it cannot be read.
    pub(crate) fn memory_held(&self, path: &str) -> Option<u64> {
        self.counted(path).or_else(|| self.of_processes(path))
    }

    fn counted(&self, path: &str) -> Option<u64> {
        let (parts, swap) = match self.version {
            Version::V1 => (&HELD_V1[..], 0),
            // The file is there only with swap, and with its accounting.
            Version::V2 => (&HELD_V2[..], self.number(path, "memory.swap.current").unwrap_or(0)),
        };
        let stat = bounded::text(self.directory(path).join("memory.stat"), STAT).ok()?;
        let values = stat.lines().filter_map(|line| line.split_once(' ')).filter(|(key, _)| parts.contains(key));
        values.map(|(_, value)| value.parse::<u64>().ok()).try_fold(swap, |sum: u64, value| sum.checked_add(value?))
    }

    fn of_processes(&self, path: &str) -> Option<u64> {
        // No sum over a cut list.
        let members = self.members(path).ok().and_then(Bounded::all)?;
        let held: u64 = members.into_iter().filter_map(process::memory_held).sum();
        (held > 0).then_some(held)
    }

    /// Processor time that a cgroup and those below it have used, seconds. `None` where nobody counts it.
    pub(crate) fn cpu_seconds(&self, path: &str) -> Option<f64> {
        match (self.version, &self.cpu) {
            (Version::V2, _) => {
                let stat = bounded::text(self.directory(path).join("cpu.stat"), FIGURES).ok()?;
                let micros: u64 = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok())?;
                Some(micros as f64 / 1e6)
            }
            (Version::V1, Some(cpu)) => {
                let file = cpu.join(path.trim_start_matches('/')).join("cpuacct.usage");
                let nanos: u64 = bounded::text(file, FIGURES).ok()?.trim().parse().ok()?;
                Some(nanos as f64 / 1e9)
            }
            (Version::V1, None) => None,
        }
    }

    /// Share of the last ten seconds in which all of a cgroup's processes waited for memory, of 1; the host's where the
    /// cgroup has no such measure.
    pub(crate) fn memory_pressure(&self, path: &str) -> Option<f64> {
        let own = bounded::text(self.directory(path).join("memory.pressure"), FIGURES);
        let text = own.or_else(|_| bounded::text("/proc/pressure/memory", FIGURES)).ok()?;
        super::pressure::full_avg10(&text).map(|percent| percent / 100.0)
    }

    fn number<T: FromStr>(&self, path: &str, name: &str) -> Option<T> {
        bounded::text(self.directory(path).join(name), FIGURES).ok()?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn mount(version: Version, files: &[(&str, &str)]) -> (tempfile::TempDir, Hierarchy) {
        let mount = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let file = mount.path().join(path);
            fs::create_dir_all(file.parent().expect("a parent")).expect("directories");
            fs::write(file, text).expect("written");
        }
        let hierarchy =
            Hierarchy { version, id: 0, mount: mount.path().to_owned(), cpu: Some(mount.path().join("cpu")) };
        (mount, hierarchy)
    }

    #[test]
    fn limits_are_read_in_both_versions() {
        let (_mount, v2) = mount(Version::V2, &[("a/memory.max", "1000\n"), ("a/b/memory.max", "max\n")]);
        assert_eq!((v2.memory_limit("/a/b"), v2.least_memory_limit("/a/b")), (None, Some(1000)));
        let (_mount, v1) = mount(Version::V1, &[("c/memory.limit_in_bytes", "9223372036854771712\n")]);
        assert_eq!(v1.memory_limit("/c"), None);
    }

    #[test]
    fn what_can_be_reclaimed_is_not_held() {
        let stat = "anon 1000\nfile 3000\nshmem 200\ninactive_file 2500\nslab_unreclaimable 30\nsock 4\n";
        let (_mount, v2) = mount(
            Version::V2,
            &[
                ("a/memory.swap.current", "100\n"),
                ("a/memory.stat", stat),
                ("a/cpu.stat", "usage_usec 2500000\nuser_usec 1\n"),
                ("a/memory.pressure", "some avg10=9.00 total=1\nfull avg10=50.00 avg60=0.00 total=1\n"),
            ],
        );
        assert_eq!(v2.memory_held("/a"), Some(1334));
        assert_eq!((v2.cpu_seconds("/a"), v2.memory_pressure("/a")), (Some(2.5), Some(0.5)));
        assert_eq!(v2.memory_held("/gone"), None);

        let stat = "rss 1\ntotal_rss 700\ntotal_shmem 50\ntotal_swap 9\ntotal_inactive_file 40\n";
        let (_mount, v1) = mount(
            Version::V1,
            &[
                ("c/memory.stat", stat),
                ("cpu/c/cpuacct.usage", "1500000000\n"),
                // What holds no numbers is no measurement.
                ("d/memory.stat", "total_rss much\n"),
            ],
        );
        assert_eq!(v1.memory_held("/c"), Some(759));
        assert_eq!((v1.cpu_seconds("/c"), v1.cpu_seconds("/d")), (Some(1.5), None));
        assert_eq!(v1.memory_held("/d"), None);
    }

    #[test]
    fn without_the_controller_the_processes_are_asked() {
        let own = std::process::id().to_string();
        let (_mount, v2) = mount(Version::V2, &[("a/cgroup.procs", ""), ("a/b/cgroup.procs", own.as_str())]);
        let found = v2.memory_held("/a").expect("this process takes memory");
        assert!(found > 100_000, "{found}");
    }
}
