//! Bounded walks over cgroups and their processes, since users decide how many there are. The result says whether the
//! walk was cut ([`Bounded`]).

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::io::Errno;

use super::bounded::{self, Bounded};

/// The most that a walk visits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Cgroups.
    pub(crate) cgroups: usize,
    /// Processes.
    pub(crate) processes: usize,
    /// Time.
    pub(crate) time: Duration,
}

/// All cgroups of a host. The kernel does not limit their number (`cgroup.max.descendants` is hardly ever set); this is
/// twice what fills the agent's table, and some seconds of work.
pub(crate) const HOST: Bounds = Bounds { cgroups: 131_072, processes: 0, time: Duration::from_secs(5) };

/// The processes of one service. systemd allows a unit 15 % of the host's, by default at most some ten thousand
/// (`DefaultTasksMax=`, systemd-system.conf(5)).
pub(crate) const MEMBERS: Bounds = Bounds { cgroups: 16_384, processes: 65_536, time: Duration::from_secs(2) };

/// Most files in a cgroup's directory: some sixty for all controllers, in v1 ten more for each size of huge pages.
const FILES: usize = 512;
/// Bytes of a pid (`pid_max` is 4,194,304 at most, proc_sys_kernel(5)) and its line feed.
const PID: usize = 8;

/// A cgroup that a walk meets.
#[derive(Debug)]
pub(crate) struct Met<'a> {
    /// Inode number of its directory, which is the kernel's cgroup id.
    pub(crate) id: u64,
    /// Its directory.
    pub(crate) directory: &'a Path,
    top: &'a Path,
}

impl Met<'_> {
    /// Its path below the top, with a leading slash. Invalid UTF-8 is replaced.
    pub(crate) fn path(&self) -> String {
        let below = self.directory.strip_prefix(self.top).unwrap_or(Path::new(""));
        format!("/{}", below.to_string_lossy())
    }
}

/// Calls `visit` for the cgroup of the directory `top` and for those below it, nearer ones first: many cgroups that a
/// user makes deep down hide none that is nearer to the root.
///
/// # Errors
/// When `top` cannot be listed. Cgroups that vanish meanwhile are left out.
pub(crate) fn walk(top: &Path, bounds: Bounds, mut visit: impl FnMut(&Met<'_>)) -> Result<Bounded<()>> {
    let until = Instant::now() + bounds.time;
    let root = fs::metadata(top).with_context(|| format!("cannot look at {}", top.display()))?;
    visit(&Met { id: root.ino(), directory: top, top });
    let (mut left, mut seen, mut is_cut) = (VecDeque::from([top.to_owned()]), 1usize, false);
    while let Some(directory) = left.pop_front() {
        if Instant::now() >= until {
            return Ok(Bounded::Cut(()));
        }
        let most = FILES + bounds.cgroups.saturating_sub(seen);
        let listed = bounded::visit(&directory, most, Some(until), |entry| {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                return;
            }
            if seen >= bounds.cgroups {
                is_cut = true;
                return;
            }
            seen += 1;
            let child = entry.path();
            visit(&Met { id: entry.ino(), directory: &child, top });
            left.push_back(child);
        });
        match listed {
            Ok(listed) => is_cut |= listed.is_cut(),
            Err(error) if directory == top => {
                return Err(error).with_context(|| format!("cannot list {}", directory.display()));
            }
            Err(error) if is_gone(&error) => {}
            // For example deeper than a path can be long: what is below is not seen.
            Err(_) => is_cut = true,
        }
    }
    Ok(Bounded::new((), is_cut))
}

/// The processes of the cgroup with this directory, in any hierarchy, and of those below it; none when it does not
/// exist.
///
/// # Errors
/// When they cannot be listed.
pub(crate) fn members(directory: &Path, bounds: Bounds) -> Result<Bounded<Vec<u32>>> {
    let mut found = Vec::new();
    let (mut failed, mut is_cut) = (None, false);
    if !directory.exists() {
        return Ok(Bounded::Whole(found));
    }
    let walked = walk(directory, bounds, |cgroup| {
        match processes(cgroup.directory, bounds.processes.saturating_sub(found.len())) {
            Ok(listed) => {
                is_cut |= listed.is_cut();
                found.extend(listed.beginning());
            }
            Err(error) => failed = Some(error),
        }
    });
    match (walked, failed) {
        (Ok(walked), None) => Ok(Bounded::new(found, is_cut || walked.is_cut())),
        (Ok(_), Some(error)) => Err(error),
        // Removed meanwhile.
        (Err(_), _) if !directory.exists() => Ok(Bounded::Whole(Vec::new())),
        (Err(error), _) => Err(error),
    }
}

/// Processes directly in the cgroup with this directory, at most `most`; none when it does not exist.
///
/// # Errors
/// When its `cgroup.procs` cannot be read.
pub(crate) fn processes(directory: &Path, most: usize) -> Result<Bounded<Vec<u32>>> {
    let file = directory.join("cgroup.procs");
    match bounded::read(&file, most.saturating_mul(PID)) {
        Ok(text) => Ok(parse(text, most)),
        Err(error) if is_gone(&error) => Ok(Bounded::Whole(Vec::new())),
        // A threaded cgroup of v2: its nearest ancestor that is not threaded lists the processes.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => Ok(Bounded::Whole(Vec::new())),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// The last line of a cut list may be part of a number, so it is dropped.
fn parse(text: Bounded<Vec<u8>>, most: usize) -> Bounded<Vec<u32>> {
    let is_cut = text.is_cut();
    let text = text.beginning();
    let whole = if is_cut { text.iter().rposition(|&byte| byte == b'\n').unwrap_or(0) } else { text.len() };
    let lines = text[..whole].split(|&byte| byte == b'\n');
    let mut pids: Vec<u32> = lines.filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok()).collect();
    let is_cut = is_cut || pids.len() > most;
    pids.truncate(most);
    Bounded::new(pids, is_cut)
}

/// True when the cgroup was removed, also between open and read.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::NODEV)
}

/// Parses any bytes as `cgroup.procs`.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    for most in [1, 100] {
        for is_cut in [false, true] {
            let parsed = parse(Bounded::new(bytes.to_vec(), is_cut), most);
            assert!(parsed.is_cut() >= is_cut && parsed.beginning().len() <= most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

    fn cgroup(directory: &Path, processes: &str) {
        fs::create_dir_all(directory).expect("made");
        fs::write(directory.join("cgroup.procs"), processes).expect("written");
    }

    #[test]
    fn processes_of_all_levels_are_found_whatever_their_cgroups_are_called() {
        let top = tempfile::tempdir().expect("a directory");
        cgroup(top.path(), "1\n2\n");
        cgroup(&top.path().join("a/b"), "3\n");
        cgroup(&top.path().join("a"), "");
        cgroup(&top.path().join(OsStr::from_bytes(b"\xff\xfe")), "4\n");
        let mut found = members(top.path(), MEMBERS).expect("listed").all().expect("whole");
        found.sort_unstable();
        assert_eq!(found, [1, 2, 3, 4]);
        assert_eq!(members(&top.path().join("gone"), MEMBERS).expect("none"), Bounded::Whole(Vec::new()));
    }

    #[test]
    fn a_walk_is_cut_at_its_bounds_and_what_is_near_comes_first() {
        let top = tempfile::tempdir().expect("a directory");
        for number in 0..50 {
            cgroup(&top.path().join(format!("user/crowd/{number}")), &format!("{}\n", 100 + number));
        }
        cgroup(&top.path().join("web"), "7\n");
        cgroup(&top.path().join("user"), "");
        cgroup(&top.path().join("user/crowd"), "");
        cgroup(top.path(), "");
        let mut paths = Vec::new();
        let bounds = Bounds { cgroups: 10, ..MEMBERS };
        let walked = walk(top.path(), bounds, |met| paths.push(met.path())).expect("walked");
        assert!(walked.is_cut() && paths.len() == 10, "{paths:?}");
        assert!(paths.contains(&"/web".to_owned()) && paths[0] == "/", "{paths:?}");
        let few = members(top.path(), Bounds { processes: 20, ..MEMBERS }).expect("listed");
        assert!(few.is_cut() && few.beginning().len() == 20);
        let late = Bounds { time: Duration::ZERO, ..MEMBERS };
        assert!(!walk(top.path(), MEMBERS, |_| {}).expect("walked").is_cut());
        for number in 0..100 {
            cgroup(&top.path().join(format!("late{number}")), "");
        }
        assert!(walk(top.path(), late, |_| {}).expect("walked").is_cut());
    }

    #[test]
    fn a_number_that_was_cut_is_no_process() {
        assert_eq!(parse(Bounded::Cut(b"12\n345".to_vec()), 9), Bounded::Cut(vec![12]));
        assert_eq!(parse(Bounded::Cut(b"345".to_vec()), 9), Bounded::Cut(Vec::new()));
        assert_eq!(parse(Bounded::Whole(b"12\n345\n".to_vec()), 9), Bounded::Whole(vec![12, 345]));
        assert_eq!(parse(Bounded::Whole(b"12\n345\n".to_vec()), 1), Bounded::Cut(vec![12]));
    }
}
