//! The cgroup hierarchy in which services are watched: v2, or the v1 memory controller's where that is in use.
//!
//! One hierarchy is chosen at start: the one that holds the memory controller, because its cgroups carry the limits.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{
    bounded::{self, Bounded, FIGURES},
    cgroup_walk::{self, MEMBERS},
    process::{self, Identity},
};

/// Bytes read of `/proc/cgroups`: some fifteen rows of 20 bytes, one for each controller.
const CONTROLLERS: usize = 16 * 1024;
/// Bytes read of `/proc/self/mounts`, where each mount is a row of up to a page. Cgroup file systems are mounted at
/// boot and stand near the beginning.
pub(super) const MOUNTS: usize = 4 * 1024 * 1024;
/// Levels below the root that are searched for a limit. A user can nest some two thousand cgroups, and each costs a
/// read; limits set by a host's owner are near the root.
const LEVELS: usize = 64;

/// Which generation a hierarchy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// The memory controller of cgroup v1.
    V1,
    /// The unified hierarchy.
    V2,
}

/// Bytes read of `/proc/PID/cgroup`: one path (at most PATH_MAX, 4,096) for each of some fifteen hierarchies.
const MEMBERSHIPS: usize = 64 * 1024;

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Generation.
    pub(crate) version: Version,
    /// Its number in `/proc/PID/cgroup`; 0 for v2.
    pub(crate) id: u32,
    /// Where it is mounted.
    pub(crate) mount: PathBuf,
    /// With v1: where processor time is counted, in a hierarchy of its own where services have the same paths, if they are
    /// in it.
    pub(crate) cpu: Option<PathBuf>,
}

impl Hierarchy {
    /// Finds the hierarchy of the memory controller.
    ///
    /// # Errors
    /// When no cgroup file system with the memory controller is mounted.
    pub(crate) fn detect() -> Result<Self> {
        let controllers = bounded::text("/proc/cgroups", CONTROLLERS).context("cannot read /proc/cgroups")?;
        let mounts = bounded::beginning("/proc/self/mounts", MOUNTS).context("cannot read /proc/self/mounts")?;
        Self::choose(&controllers, &mounts)
    }

    fn choose(controllers: &str, mounts: &str) -> Result<Self> {
        // Subsystem, hierarchy, number of cgroups, enabled. The row is absent when the controller is not built in, and
        // the whole v1 list may be on kernels without v1.
        let v1 = controllers
            .lines()
            .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
            .find(|row| row.first() == Some(&"memory"))
            .and_then(|row| row.get(1)?.parse().ok())
            .unwrap_or(0);
        let (mut memory, mut cpu, mut unified) = (None, None, None);
        for line in mounts.lines() {
            let mut columns = line.split(' ');
            let (Some(_), Some(mount), Some(kind), Some(options)) =
                (columns.next(), columns.next(), columns.next(), columns.next())
            else {
                continue;
            };
            let controls = |controller| kind == "cgroup" && options.split(',').any(|option| option == controller);
            if controls("memory") {
                memory.get_or_insert_with(|| unescape(mount));
            }
            if controls("cpuacct") {
                cpu.get_or_insert_with(|| unescape(mount));
            }
            if kind == "cgroup2" {
                unified.get_or_insert_with(|| unescape(mount));
            }
        }
        if let (true, Some(mount)) = (v1 != 0, memory) {
            return Ok(Self { version: Version::V1, id: v1, mount, cpu });
        }
        let unified = unified.map(|mount| Self { version: Version::V2, id: 0, mount, cpu: None });
        match unified {
            Some(unified) if v1 == 0 => Ok(unified),
            Some(_) => bail!(
                "the memory controller is bound to cgroup v1 but its hierarchy is not mounted; mount it with \
                 'mount -t cgroup -o memory cgroup /sys/fs/cgroup/memory', or boot with cgroup_no_v1=memory"
            ),
            None => bail!("no cgroup file system is mounted; mount one with 'mount -t cgroup2 cgroup2 /sys/fs/cgroup'"),
        }
    }

    /// True for cgroup v1.
    pub(crate) fn is_v1(&self) -> bool {
        self.version == Version::V1
    }

    /// The directory of a cgroup given by its path below the root, with or without a leading slash.
    pub(crate) fn directory(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    /// Id of a cgroup: the inode number of its directory. `None` when it does not exist.
    pub(crate) fn id_of(&self, path: &str) -> Result<Option<u64>> {
        let directory = self.directory(path);
        match fs::metadata(&directory) {
            Ok(metadata) => Ok(Some(metadata.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot look at {}", directory.display())),
        }
    }

    /// The cgroup that a process lives in, in this hierarchy; `None` when the process has gone.
    pub(crate) fn cgroup_of(&self, pid: u32) -> Option<String> {
        self.membership(&bounded::text(format!("/proc/{pid}/cgroup"), MEMBERSHIPS).ok()?)
    }

    /// `text` has a line for each hierarchy: `id:controllers:path` (cgroups(7)).
    fn membership(&self, text: &str) -> Option<String> {
        let path = text.lines().find_map(|line| {
            let (id, rest) = line.split_once(':')?;
            (id.parse() == Ok(self.id)).then(|| rest.split_once(':')).flatten()
        });
        path.map(|(_, path)| path.to_owned())
    }

    /// Calls `visit(id, path)` for every cgroup, those nearer to the root first; paths begin with a slash. Returns
    /// whether the walk was cut ([`cgroup_walk::HOST`]).
    ///
    /// # Errors
    /// When the root cannot be listed. Cgroups that vanish meanwhile are left out.
    pub(crate) fn walk(&self, mut visit: impl FnMut(u64, &str)) -> Result<Bounded<()>> {
        cgroup_walk::walk(&self.mount, cgroup_walk::HOST, |cgroup| visit(cgroup.id, &cgroup.path()))
    }

    /// Processes directly in a cgroup; none when it does not exist.
    pub(crate) fn processes(&self, path: &str) -> Result<Bounded<Vec<u32>>> {
        cgroup_walk::processes(&self.directory(path), MEMBERS.processes)
    }

    /// All processes in a cgroup and below it; none when it does not exist.
    pub(crate) fn members(&self, path: &str) -> Result<Bounded<Vec<u32>>> {
        cgroup_walk::members(&self.directory(path), MEMBERS)
    }

    /// The process that a service began with: the oldest of those whose parent is outside the cgroup. Takes some 10 µs
    /// for each process of the cgroup, so never call it on an async task.
    pub(crate) fn main_process(&self, path: &str) -> Result<Option<Identity>> {
        // If the list was cut, it still has the oldest: the kernel lists them first.
        let members: HashSet<u32> = self.processes(path)?.beginning().into_iter().collect();
        let outside =
            members.iter().filter_map(|&pid| process::descent(pid)).filter(|(parent, _)| !members.contains(parent));
        Ok(outside.map(|(_, process)| process).min_by_key(|process| process.start_ns))
    }

    /// How many processes the OOM killer has killed in a cgroup, and how often a whole group (v2). v2 counts those in
    /// cgroups below too. `None` where it cannot be read.
    pub(crate) fn oom_kills(&self, path: &str) -> Option<(u64, Option<u64>)> {
        let name = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = bounded::text(self.directory(path).join(name), FIGURES).ok()?;
        let count = |key| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok());
        Some((count("oom_kill")?, count("oom_group_kill")))
    }

    /// True when the OOM killer takes a whole cgroup for a victim in `path` (`memory.oom.group`, v2): one between it and
    /// the cgroup whose limit was met asks for that.
    pub(crate) fn kills_groups(&self, path: &str, limit_owner: Option<&str>) -> bool {
        let asks = |path: &str| {
            bounded::text(self.directory(path).join("memory.oom.group"), FIGURES).is_ok_and(|text| text.trim() == "1")
        };
        let within = |path: &&str| limit_owner.is_none_or(|owner| path.len() >= owner.len());
        self.version == Version::V2 && ancestry(path).take_while(within).any(asks)
    }

    /// Makes a cgroup, its parents included. No error when it exists.
    pub(crate) fn create(&self, path: &str) -> Result<()> {
        let directory = self.directory(path);
        fs::create_dir_all(&directory).with_context(|| format!("cannot make the cgroup {}", directory.display()))
    }

    /// Removes an empty cgroup. No error when it has gone.
    pub(crate) fn remove(&self, path: &str) -> Result<()> {
        let directory = self.directory(path);
        match fs::remove_dir(&directory) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot remove the cgroup {}", directory.display())),
        }
    }

    /// Limits the memory of a cgroup to `bytes`, swap included where the kernel counts it.
    pub(crate) fn limit_memory(&self, path: &str, bytes: u64) -> Result<()> {
        let directory = self.directory(path);
        let (limit, swap, swap_bytes) = match self.version {
            Version::V1 => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", bytes),
            Version::V2 => {
                self.enable_memory(path)?;
                ("memory.max", "memory.swap.max", 0)
            }
        };
        let file = directory.join(limit);
        fs::write(&file, bytes.to_string()).with_context(|| format!("cannot write {bytes} to {}", file.display()))?;
        let file = directory.join(swap);
        if file.exists() {
            fs::write(&file, swap_bytes.to_string())
                .with_context(|| format!("cannot write {swap_bytes} to {}", file.display()))?;
        }
        Ok(())
    }

    /// v2 gives a cgroup its memory files only when every ancestor passes the controller on.
    fn enable_memory(&self, path: &str) -> Result<()> {
        let mut directory = self.mount.clone();
        for name in Path::new(path.trim_matches('/')).components() {
            let file = directory.join("cgroup.subtree_control");
            let now = bounded::text(&file, FIGURES).with_context(|| format!("cannot read {}", file.display()))?;
            if !now.split_ascii_whitespace().any(|controller| controller == "memory") {
                fs::write(&file, "+memory")
                    .with_context(|| format!("cannot pass the memory controller on in {}", file.display()))?;
            }
            directory.push(name);
        }
        Ok(())
    }
}

/// A path and its ancestors, the root last. Of a path deeper than [`LEVELS`], only the levels near the root.
pub(super) fn ancestry(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_end_matches('/');
    let near = path.match_indices('/').nth(LEVELS).map_or(path, |(slash, _)| &path[..slash]);
    std::iter::successors(Some(near), |path| path.rfind('/').map(|slash| &path[..slash]))
}

/// Undoes the octal escapes of `/proc/self/mounts` (blank, tab, newline, backslash).
fn unescape(text: &str) -> PathBuf {
    let plain = text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
    PathBuf::from(plain)
}

#[cfg(any(test, fuzzing))]
impl Hierarchy {
    /// One that is nowhere.
    pub(crate) fn fuzz() -> Self {
        Self { version: Version::V2, id: 0, mount: PathBuf::new(), cpu: None }
    }
}

/// Takes any text for the kernel's tables of controllers and mounts.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let (controllers, mounts) = text.split_once("\n\n").unwrap_or(("", text));
    drop(Hierarchy::choose(controllers, mounts));
    assert!(ancestry(text).count() <= text.len() + 1, "each step up is shorter");
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_V1: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t90\t1\nmemory\t0\t90\t1\n";
    const ON_V1: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t4\t90\t1\n";
    const UNIFIED: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
    const HYBRID: &str = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0\n\
        cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";

    #[test]
    fn the_hierarchy_of_the_memory_controller_is_chosen() {
        let v2 = Hierarchy::choose(NO_V1, UNIFIED).expect("found");
        assert_eq!(v2, Hierarchy { version: Version::V2, id: 0, mount: "/sys/fs/cgroup".into(), cpu: None });
        let v1 = Hierarchy::choose(ON_V1, HYBRID).expect("found");
        let cpu = Some("/sys/fs/cgroup/cpu".into());
        assert_eq!(v1, Hierarchy { version: Version::V1, id: 4, mount: "/sys/fs/cgroup/memory".into(), cpu });
        // A kernel without v1 has no /proc/cgroups rows at all.
        assert_eq!(Hierarchy::choose("", UNIFIED).expect("found").version, Version::V2);
    }

    #[test]
    fn a_process_is_in_one_cgroup_of_each_hierarchy() {
        let text = "4:memory:/docker/abc\n1:name=systemd:/x\n0::/system.slice/a:b.service\n";
        let v2 = Hierarchy::choose(NO_V1, UNIFIED).expect("found");
        assert_eq!(v2.membership(text).as_deref(), Some("/system.slice/a:b.service"));
        let v1 = Hierarchy::choose(ON_V1, HYBRID).expect("found");
        assert_eq!(v1.membership(text).as_deref(), Some("/docker/abc"));
        assert_eq!(v1.membership("0::/x\n"), None);
    }

    #[test]
    fn an_unmounted_hierarchy_is_named_with_its_mend() {
        let error = Hierarchy::choose(NO_V1, "proc /proc proc rw 0 0\n").expect_err("nothing mounted").to_string();
        assert!(error.contains("mount -t cgroup2"), "{error}");
        let error = Hierarchy::choose(ON_V1, UNIFIED).expect_err("v1 not mounted").to_string();
        assert!(error.contains("-o memory"), "{error}");
    }

    #[test]
    fn a_path_leads_up_to_the_root() {
        assert_eq!(ancestry("/a/b").collect::<Vec<_>>(), ["/a/b", "/a", ""]);
        assert_eq!(ancestry("/").collect::<Vec<_>>(), [""]);
        let deep = "/x".repeat(2000);
        assert_eq!(ancestry(&deep).count(), LEVELS + 1, "the root, and what is nearest to it");
    }

    #[test]
    fn counts_are_read_in_both_versions() {
        let mount = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let file = mount.path().join(path);
            fs::create_dir_all(file.parent().expect("a parent")).expect("directories");
            fs::write(file, text).expect("written");
        };
        write("a/b/memory.events", "low 0\noom 7\noom_kill 3\noom_group_kill 1\n");
        write("a/memory.oom.group", "1\n");
        write("a/b/memory.oom.group", "0\n");
        let v2 = Hierarchy { version: Version::V2, id: 0, mount: mount.path().to_owned(), cpu: None };
        assert_eq!(v2.oom_kills("/a/b"), Some((3, Some(1))));
        assert!(v2.kills_groups("/a/b", None) && v2.kills_groups("/a/b", Some("/a")));
        assert!(!v2.kills_groups("/a/b", Some("/a/b")), "above the limit that was met");
        write("c/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
        let v1 = Hierarchy { version: Version::V1, ..v2 };
        assert_eq!(v1.oom_kills("/c"), Some((2, None)));
    }

    #[test]
    fn mount_points_with_blanks_are_unescaped() {
        assert_eq!(unescape("/mnt/a\\040b"), PathBuf::from("/mnt/a b"));
    }
}
