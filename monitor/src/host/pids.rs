//! Counts processes and threads that cgroups refused (`pids.max`) since the last read.
//!
//! The pids controller may have its own hierarchy (cgroup v1), with the same paths for services. The kernel counts a
//! refusal (`max` of `pids.events`, 4.8 and newer) at the cgroup that refused, and from 6.11 on also at those above.

use std::path::{Path, PathBuf};

use super::{bounded, cgroup::MOUNTS};
use crate::recent::Recent;

/// Cgroups whose count is remembered.
const COUNTED: usize = 4096;
/// Bytes read of `pids.events`: a line or two.
const EVENTS: usize = 256;
/// A cgroup is read at most once in this time, however many processes die there; nanoseconds: 1 s.
const PAUSE_NS: u64 = 1_000_000_000;

/// Processes and threads that a cgroup refused since the last read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PidsRefused {
    /// How many.
    pub(crate) count: u64,
    /// Time since the last read, nanoseconds: the refusals are no older.
    pub(crate) within_ns: u64,
}

/// The counts at the last read, by cgroup id in the hierarchy where services are watched.
#[derive(Debug)]
pub(crate) struct PidsLimits {
    /// Mount point of the controller; `None` when it is not mounted.
    mount: Option<PathBuf>,
    counts: Recent<u64, Look>,
}

/// The last read of a cgroup.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// Refusals since the cgroup was made; `None` when they cannot be read.
    count: Option<u64>,
    /// Time of the read, or of the cgroup's creation.
    at_ns: u64,
    /// True when it was not read yet, and `at_ns` is its creation.
    is_new: bool,
    /// Refusals between the last two reads.
    refused: Option<PidsRefused>,
}

impl PidsLimits {
    /// Knows no cgroup yet.
    pub(crate) fn new() -> Self {
        // Without the mounts, refusals are not known.
        let mounts = bounded::beginning("/proc/self/mounts", MOUNTS).unwrap_or_default();
        Self::at(mount(&mounts))
    }

    fn at(mount: Option<PathBuf>) -> Self {
        Self { mount, counts: Recent::new(COUNTED) }
    }

    /// Notes a new cgroup, which has refused nothing yet.
    pub(crate) fn made(&mut self, cgroup: u64, now_ns: u64) {
        self.counts.insert(cgroup, Look { count: Some(0), at_ns: now_ns, is_new: true, refused: None });
    }

    /// Refusals of a cgroup since the last read; `None` when there were none, or it was not read before.
    pub(crate) fn look(&mut self, cgroup: u64, path: &str, now_ns: u64) -> Option<PidsRefused> {
        let before = self.counts.get(&cgroup).copied();
        if let Some(Look { at_ns, is_new: false, refused, .. }) = before
            && now_ns.saturating_sub(at_ns) < PAUSE_NS
        {
            let age = now_ns.saturating_sub(at_ns);
            return refused.map(|refused| PidsRefused { within_ns: refused.within_ns + age, ..refused });
        }
        let file = self.mount.as_ref()?.join(path.trim_start_matches('/')).join("pids.events");
        let count = refusals(&file);
        let refused = before.and_then(|before| {
            let count = count?.checked_sub(before.count?).filter(|&count| count > 0)?;
            Some(PidsRefused { count, within_ns: now_ns.saturating_sub(before.at_ns) })
        });
        self.counts.remove(&cgroup);
        self.counts.insert(cgroup, Look { count, at_ns: now_ns, is_new: false, refused });
        refused
    }
}

/// Mount point of the pids controller: a hierarchy of v1, else that of v2.
fn mount(mounts: &str) -> Option<PathBuf> {
    let lines = || mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let of = |fits: &dyn Fn(&str, &str) -> bool| {
        lines().find_map(|columns| match columns[..] {
            [_, mount, kind, options, ..] if fits(kind, options) => Some(PathBuf::from(mount)),
            _ => None,
        })
    };
    of(&|kind, options| kind == "cgroup" && options.split(',').any(|option| option == "pids"))
        .or_else(|| of(&|kind, _| kind == "cgroup2"))
}

fn refusals(file: &Path) -> Option<u64> {
    let text = bounded::text(file, EVENTS).ok()?;
    text.lines().find_map(|line| line.strip_prefix("max ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_controller_is_found_where_it_is_mounted() {
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let hybrid =
            "cgroup /sys/fs/cgroup/pids cgroup rw,nosuid,pids 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount(unified), Some("/sys/fs/cgroup".into()));
        assert_eq!(mount(hybrid), Some("/sys/fs/cgroup/pids".into()));
        assert_eq!(mount("tmpfs / tmpfs rw 0 0\n"), None);
    }

    #[test]
    fn what_was_refused_since_the_last_look_is_told_once() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |count: u64| {
            fs::create_dir_all(root.path().join("web")).expect("made");
            fs::write(root.path().join("web/pids.events"), format!("max {count}\n")).expect("written");
        };
        let mut limits = PidsLimits::at(Some(root.path().to_owned()));
        const S: u64 = PAUSE_NS;
        assert_eq!(limits.look(1, "/web", S / 2), None, "it cannot be read");
        write(3);
        assert_eq!(limits.look(1, "/web", S), None, "nothing says when");
        assert_eq!(limits.look(1, "/web", 2 * S), None, "no more since");
        write(5);
        assert_eq!(limits.look(1, "/web", 5 * S), Some(PidsRefused { count: 2, within_ns: 3 * S }));
        write(9);
        let same = PidsRefused { count: 2, within_ns: 3 * S + S / 2 };
        assert_eq!(limits.look(1, "/web", 5 * S + S / 2), Some(same), "a crowd of deaths costs one look");
        assert_eq!(limits.look(1, "/web", 6 * S), Some(PidsRefused { count: 4, within_ns: S }));
        assert_eq!(limits.look(1, "/web", 7 * S), None);
        limits.made(2, 100);
        assert_eq!(limits.look(2, "/web", 107), Some(PidsRefused { count: 9, within_ns: 7 }));
        assert_eq!(PidsLimits::at(None).look(2, "/web", 1), None);
    }
}
