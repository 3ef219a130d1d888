//! A memory cgroup of a test's own, on cgroup v1 or v2, removed when it is dropped.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::Duration,
};

/// Numbers the cgroups of one test process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// See the module.
#[derive(Debug)]
pub struct Cgroup {
    /// Its directory.
    pub directory: PathBuf,
    /// Its path below the root of the hierarchy, with a leading slash.
    pub path: String,
}

/// Where the memory controller's hierarchy is mounted, and whether it is v2.
///
/// # Panics
/// When none is mounted.
pub fn memory_hierarchy() -> (PathBuf, bool) {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if v1.join("memory.limit_in_bytes").exists() || v1.join("cgroup.procs").exists() && v1.join("tasks").exists() {
        return (v1.to_owned(), false);
    }
    let v2 = Path::new("/sys/fs/cgroup");
    assert!(v2.join("cgroup.controllers").exists(), "no memory hierarchy at {} or {}", v1.display(), v2.display());
    (v2.to_owned(), true)
}

impl Cgroup {
    /// A new cgroup below the root; with a limit in bytes, its memory (and swap, where counted) is limited.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(limit: Option<u64>) -> Self {
        let name = format!("defib-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (mount, v2) = memory_hierarchy();
        if v2 {
            let control = mount.join("cgroup.subtree_control");
            fs::write(&control, "+memory").expect("the memory controller can be passed on");
        }
        let cgroup = Self::make(mount.join(&name), format!("/{name}"));
        if let Some(limit) = limit {
            let (file, swap, swap_limit) = if v2 {
                ("memory.max", "memory.swap.max", 0)
            } else {
                ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", limit)
            };
            fs::write(cgroup.directory.join(file), limit.to_string()).expect("the limit can be set");
            let swap = cgroup.directory.join(swap);
            if swap.exists() {
                fs::write(swap, swap_limit.to_string()).expect("the swap limit can be set");
            }
        }
        cgroup
    }

    /// A new cgroup below the root of the hierarchy mounted at `mount`, whatever its controllers.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn at(mount: &Path) -> Self {
        let name = format!("defib-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self::make(mount.join(&name), format!("/{name}"))
    }

    /// A new cgroup below this one, without a limit of its own. It has to go first.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn child(&self, name: &str) -> Self {
        Self::make(self.directory.join(name), format!("{}/{name}", self.path))
    }

    fn make(directory: PathBuf, path: String) -> Self {
        fs::create_dir(&directory).unwrap_or_else(|error| panic!("cannot make {}: {error}", directory.display()));
        Self { directory, path }
    }

    /// Processes in it and below it that the kernel has killed for want of memory. `None` where it does not count them.
    pub fn oom_kills(&self) -> Option<u64> {
        if let Some(kills) = counter(&self.directory.join("memory.events"), "oom_kill") {
            return Some(kills); // includes what is below
        }
        let mut kills = counter(&self.directory.join("memory.oom_control"), "oom_kill")?;
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            kills += counter(&entry.path().join("memory.oom_control"), "oom_kill").unwrap_or(0);
        }
        Some(kills)
    }

    /// The file through which a process enters.
    pub fn procs(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    /// Its processes.
    pub fn members(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.procs()).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

/// The value of `name` in a file of lines `name value`; `None` when it is not there.
pub fn counter(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..500 {
            for pid in self.members() {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
                }
            }
            match fs::remove_dir(&self.directory) {
                Ok(()) => return,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
                Err(_) => sleep(Duration::from_millis(10)),
            }
        }
        println!("left behind: {}", self.directory.display());
    }
}
