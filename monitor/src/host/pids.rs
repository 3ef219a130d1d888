//! Processes and threads that cgroups have refused (`pids.max`): a count that is compared with what it was.
//!
//! The pids controller may be in a hierarchy of its own (cgroup v1), where services have the same paths. Its count of refusals
//! (`max` of `pids.events`, 4.8 and newer) is of the cgroup that refused, and from 6.11 on of those above it too.

use std::path::{Path, PathBuf};

use super::{bounded, cgroup::MOUNTS};
use crate::recent::Recent;

/// Cgroups whose count is remembered.
const COUNTED: usize = 4096;
/// Room for `pids.events`: a line or two.
const EVENTS: usize = 256;
/// Each cgroup is looked at once in this time, however many die there: 1 s.
const PAUSE_NS: u64 = 1_000_000_000;

/// Processes and threads that a cgroup refused since it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PidsRefused {
    /// How many.
    pub(crate) count: u64,
    /// How long ago the last look was, nanoseconds: the refusals are no older.
    pub(crate) within_ns: u64,
}

/// What cgroups had refused at the last look, by their ids in the hierarchy where services are watched.
#[derive(Debug)]
pub(crate) struct PidsLimits {
    /// Where the controller is mounted; `None`: nowhere.
    mount: Option<PathBuf>,
    counts: Recent<u64, Look>,
}

/// The last look at a cgroup.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// What it had refused since it was made; `None` when that cannot be read.
    count: Option<u64>,
    /// When.
    at_ns: u64,
    /// Nobody has looked: it was made then.
    is_new: bool,
    /// What it had refused since the look before.
    refused: Option<PidsRefused>,
}

impl PidsLimits {
    /// Knows no cgroup yet.
    pub(crate) fn new() -> Self {
        // Without them nothing is known of refusals.
        let mounts = bounded::beginning("/proc/self/mounts", MOUNTS).unwrap_or_default();
        Self::at(mount(&mounts))
    }

    fn at(mount: Option<PathBuf>) -> Self {
        Self { mount, counts: Recent::new(COUNTED) }
    }

    /// A cgroup was made, and has refused nothing yet.
    pub(crate) fn made(&mut self, cgroup: u64, now_ns: u64) {
        self.counts.insert(cgroup, Look { count: Some(0), at_ns: now_ns, is_new: true, refused: None });
    }

    /// What a cgroup has refused since the last look; `None`: nothing, or it was not looked at before.
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

/// Where the pids controller is: in a hierarchy of v1, else in that of v2.
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
