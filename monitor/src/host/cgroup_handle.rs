//! Finds a cgroup's path by its id without a walk over all cgroups.
//!
//! Cgroup file systems export file handles (kernfs, since 5.5): the handle is the id, and opening it gives the
//! directory. Opening needs `CAP_DAC_READ_SEARCH`; without it a bounded part of the hierarchy is searched.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::OFlags;

use super::{
    bounded,
    cgroup_walk::{self, Bounds},
};

/// `FILEID_KERNFS` (include/linux/exportfs.h): the handle is a 64-bit kernfs id.
const FILEID_KERNFS: i32 = 0xfe;
/// Bounds of one search without handles, which runs on the task that owns the agent's state.
const SEARCHED: Bounds = Bounds { cgroups: 4096, processes: 0, time: Duration::from_millis(20) };
/// Least time between two searches without handles, CLOCK_BOOTTIME nanoseconds: 10 s.
const SEARCH_INTERVAL_NS: u64 = 10_000_000_000;

/// `struct file_handle` with room for a kernfs id.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    id: [u8; 8],
}

/// The cgroups of one hierarchy by their ids.
#[derive(Debug)]
pub(crate) struct Handles {
    mount: PathBuf,
    /// The mount; `None` where ids cannot be opened.
    opened: Option<File>,
    /// When the hierarchy was searched last; `None`: never.
    searched_ns: Option<u64>,
}

impl Handles {
    /// For the hierarchy mounted at `mount`.
    pub(crate) fn new(mount: &Path) -> Self {
        let opened = File::open(mount).ok().filter(|file| !matches!(open(file, root_id(file)), Err(Refused::Here)));
        Self { mount: mount.to_owned(), opened, searched_ns: None }
    }

    /// The path of the cgroup with this id, below the root of the hierarchy; `None` when it has gone, or was not found within the
    /// bounds of a search.
    pub(crate) fn path_of(&mut self, id: u64, now_ns: u64) -> Option<String> {
        match &self.opened {
            Some(mount) => open(mount, id).ok().and_then(|directory| self.below(&directory)),
            None => {
                let is_due = self.searched_ns.is_none_or(|last| now_ns.saturating_sub(last) >= SEARCH_INTERVAL_NS);
                is_due.then(|| {
                    self.searched_ns = Some(now_ns);
                    search(&self.mount, id, SEARCHED)
                })?
            }
        }
    }

    /// Path of an open directory below the mount.
    fn below(&self, directory: &OwnedFd) -> Option<String> {
        let path = bounded::link(format!("/proc/self/fd/{}", directory.as_raw_fd())).ok()?;
        let path = path.to_string_lossy();
        let below = path.strip_prefix(self.mount.to_str()?)?;
        (below.is_empty() || below.starts_with('/'))
            .then(|| if below.is_empty() { "/".to_owned() } else { below.to_owned() })
    }
}

/// Why a handle was not opened.
enum Refused {
    /// No handle can be opened here: no capability, or a kernel without handles.
    Here,
    /// There is no such cgroup.
    Gone,
}

fn root_id(mount: &File) -> u64 {
    mount.metadata().map_or(0, |metadata| metadata.ino())
}

fn open(mount: &File, id: u64) -> Result<OwnedFd, Refused> {
    let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, id: id.to_ne_bytes() };
    let flags = (OFlags::PATH | OFlags::CLOEXEC).bits().cast_signed();
    // SAFETY: the handle is a whole `struct file_handle` with as many bytes after its header as it says; the call
    // writes none.
    let number = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if number < 0 {
        let error = io::Error::last_os_error();
        let gone = [libc::ESTALE, libc::ENOENT];
        return Err(if error.raw_os_error().is_some_and(|code| gone.contains(&code)) {
            Refused::Gone
        } else {
            Refused::Here
        });
    }
    // SAFETY: the call has just opened it, for this owner alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Searches from the root: units and containers are near it, users' own cgroups below them.
fn search(mount: &Path, id: u64, bounds: Bounds) -> Option<String> {
    let mut found = None;
    let walked = cgroup_walk::walk(mount, bounds, |cgroup| {
        if cgroup.id == id {
            found = Some(cgroup.path());
        }
    });
    // A cut walk may still have found it.
    walked.is_ok().then_some(found)?
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::DirEntryExt as _};

    use super::*;
    use crate::host::cgroup::Hierarchy;

    const FEW: Bounds = Bounds { cgroups: 10, ..SEARCHED };

    #[test]
    fn a_search_finds_a_directory_by_its_number_and_ends() {
        let mount = tempfile::tempdir().expect("a directory");
        for path in ["a/b", "c"] {
            fs::create_dir_all(mount.path().join(path)).expect("made");
        }
        let id = fs::metadata(mount.path().join("a/b")).expect("there").ino();
        assert_eq!(search(mount.path(), id, FEW).as_deref(), Some("/a/b"));
        assert_eq!(search(mount.path(), id, Bounds { cgroups: 1, ..FEW }), None, "one directory was looked at");
        assert_eq!(search(mount.path(), 0, FEW), None);
    }

    #[test]
    fn without_handles_searches_are_seldom() {
        let mount = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(mount.path().join("a")).expect("made");
        let id = fs::metadata(mount.path().join("a")).expect("there").ino();
        let mut handles = Handles { mount: mount.path().to_owned(), opened: None, searched_ns: None };
        assert_eq!(handles.path_of(id, 5).as_deref(), Some("/a"), "also on a host that began 5 ns ago");
        assert_eq!(handles.path_of(id, 6), None);
        assert_eq!(handles.path_of(id, 5 + SEARCH_INTERVAL_NS).as_deref(), Some("/a"));
    }

    /// On the host's own hierarchy: root opens each cgroup by its id; without the capability, the search finds it.
    #[test]
    fn a_cgroup_of_this_host_is_found_by_its_id() {
        let Ok(hierarchy) = Hierarchy::detect() else { return };
        let mut handles = Handles::new(&hierarchy.mount);
        let root = fs::metadata(&hierarchy.mount).expect("mounted").ino();
        if handles.opened.is_some() {
            assert_eq!(handles.path_of(root, 1).as_deref(), Some("/"));
            assert_eq!(handles.path_of(u64::MAX, 1), None);
        }
        let first = fs::read_dir(&hierarchy.mount).expect("listed").flatten().find(|entry| entry.path().is_dir());
        let Some(first) = first else { return };
        let want = format!("/{}", first.file_name().to_string_lossy());
        assert_eq!(handles.path_of(first.ino(), 1), Some(want));
    }
}
