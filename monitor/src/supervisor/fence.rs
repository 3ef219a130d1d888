//! Before a service is started again, nothing of its old incarnation may be left: two of them on one port, one data
//! directory, one lock file are worse than none.
//!
//! A cgroup is killed as one: by its `cgroup.kill` (v2, Linux 5.14 and newer), which reaches processes that are being forked too;
//! elsewhere by passes over its processes, each of which is named by a pidfd, found in the cgroup after that, and killed. Between
//! two passes the kernel says when the cgroup is empty (`cgroup.events`, v2), or one list is read again (v1).
//!
//! All of it blocks, so it runs on a thread of its own: fences of several services do not wait for each other, and nobody else
//! waits for any.

use std::{
    fs::{File, OpenOptions},
    io::{Seek as _, SeekFrom, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::{task::spawn_blocking, time::sleep};

use crate::host::{
    bounded::{self, Bounded, FIGURES},
    cgroup::{Hierarchy, Version},
    cgroup_walk::{self, Bounds},
    process::{self, Identity},
};

/// What is left of an old incarnation has this long to go.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two passes: 5 ms, twice as long each time, up to 100 ms. What was killed needs time to go.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// A cgroup that was killed as one is killed again after this, should others have been moved there.
const AGAIN: Duration = Duration::from_secs(1);
/// One pass. Of more the rest is left to the next pass.
const PASS: Bounds = Bounds { cgroups: 65_536, processes: 65_536, time: Duration::from_secs(2) };
/// Processes that are named by a pidfd at a time: an agent may have some thousand files open.
const AT_ONCE: usize = 256;
/// Processes that an error names.
const NAMED: usize = 8;
/// Bytes of `/proc/PID/cgroup`: a path of up to 4096 bytes for each of some fifteen hierarchies.
const OWN_CGROUPS: usize = 64 * 1024;
/// The first process of the host, or of the container that this agent runs in.
const INIT: u32 = 1;

/// Ends what is left in the cgroup `path` of `service`, and waits until it has gone.
///
/// # Errors
/// When something is left after ten seconds, or the cgroup holds others than the service.
pub(super) async fn clear(hierarchy: &Hierarchy, path: &str, service: &str) -> Result<()> {
    let fence = Fence {
        directory: hierarchy.directory(path),
        path: path.to_owned(),
        service: service.to_owned(),
        hierarchy: (hierarchy.version, hierarchy.id),
    };
    spawn_blocking(move || fence.clear(Instant::now() + TIMEOUT)).await.context("the fence was not finished")?
}

/// Asks a process to end, and waits until it has, but no longer than `patience`.
///
/// # Errors
/// When it cannot be asked.
pub(super) async fn ask_to_end(process: Identity, patience: Duration) -> Result<()> {
    let Some(pid) = i32::try_from(process.tgid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    // By now the pid cannot become somebody else's, if it has not been that before.
    if !process::is_alive(process) {
        return Ok(());
    }
    match pidfd_send_signal(&fd, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    let begin = Instant::now();
    while process::is_alive(process) && begin.elapsed() < patience {
        sleep(PAUSE).await;
    }
    Ok(())
}

/// A cgroup whose processes shall go.
#[derive(Debug)]
struct Fence {
    directory: PathBuf,
    path: String,
    service: String,
    /// Which hierarchy that is, and its number in `/proc/PID/cgroup`.
    hierarchy: (Version, u32),
}

impl Fence {
    fn clear(&self, until: Instant) -> Result<()> {
        // Should the cgroup be somebody else's after all: whatever holds these two is no left-over.
        let holds = |pid: u32| lives_in(pid, self.hierarchy.1, &self.path);
        let others = || {
            let (path, service) = (&self.path, &self.service);
            format!("the cgroup {path} of {service} holds other processes than the service's; give it one of its own")
        };
        ensure!(!self.path.trim_matches('/').is_empty() && !holds(INIT) && !holds(std::process::id()), others());
        let events = self.events();
        let mut pause = PAUSE;
        loop {
            if events.as_ref().is_some_and(|events| !is_populated(events)) {
                return Ok(());
            }
            let left = self.members()?;
            // v2 has said above that somebody is there; a list that is cut or ends early is no proof that nobody is.
            if left == Bounded::Whole(Vec::new()) && events.as_ref().is_none_or(|events| !is_populated(events)) {
                return Ok(());
            }
            let (is_cut, left) = (left.is_cut(), left.beginning());
            ensure!(!left.contains(&INIT) && !left.contains(&std::process::id()), others());
            if Instant::now() >= until {
                let more = if is_cut { ", and more" } else { "" };
                let named = &left[..left.len().min(NAMED)];
                let (count, service) = (left.len(), &self.service);
                bail!("{count} processes of the old incarnation of {service} do not end: {named:?}{more}");
            }
            pause = if self.kill_as_one() {
                AGAIN
            } else {
                self.kill_each().with_context(|| format!("cannot end the old incarnation of {}", self.service))?;
                pause.min(PAUSE_MAX)
            };
            let rest = until.saturating_duration_since(Instant::now());
            match &events {
                Some(events) => wait_for_change(events, pause.min(rest)),
                None => thread::sleep(pause.min(rest)),
            }
            pause *= 2;
        }
    }

    /// v2: the file that says whether anybody lives in the cgroup or below; the kernel wakes whoever waits for a change of it.
    fn events(&self) -> Option<File> {
        (self.hierarchy.0 == Version::V2).then(|| File::open(self.directory.join("cgroup.events")).ok()).flatten()
    }

    /// All processes in the cgroup and below it that have not ended.
    fn members(&self) -> Result<Bounded<Vec<u32>>> {
        let members = cgroup_walk::members(&self.directory, PASS)?;
        Ok(members.map(|mut pids| {
            // A zombie has ended; whoever shall reap it, it holds nothing. v2 lists none.
            pids.retain(|&pid| self.hierarchy.0 == Version::V2 || !process::is_zombie(pid));
            pids
        }))
    }

    /// True when the kernel kills all processes of the cgroup and of those below it. Kernels before 5.14 have no such file, v1
    /// has none, and a threaded cgroup refuses.
    fn kill_as_one(&self) -> bool {
        let file = || OpenOptions::new().write(true).open(self.directory.join("cgroup.kill"));
        self.hierarchy.0 == Version::V2 && file().and_then(|mut file| file.write_all(b"1")).is_ok()
    }

    /// One pass over all processes.
    fn kill_each(&self) -> Result<()> {
        let mut failed = None;
        let walked = cgroup_walk::walk(&self.directory, PASS, |cgroup| {
            if let Err(error) = kill_those_in(cgroup.directory) {
                failed = Some(error);
            }
        });
        match (walked, failed) {
            // Gone with its last process; of one that was cut the rest is for the next pass.
            (Err(_) | Ok(_), None) => Ok(()),
            (_, Some(error)) => Err(error),
        }
    }
}

/// Whether a process lives in the cgroup `path` of a hierarchy, or below it, by its own word. In a namespace of cgroups other than
/// the mount's the paths are others, and only a list of the processes tells.
fn lives_in(pid: u32, hierarchy: u32, path: &str) -> bool {
    bounded::text(format!("/proc/{pid}/cgroup"), OWN_CGROUPS).is_ok_and(|text| names(&text, hierarchy, path))
}

/// Rows of `/proc/PID/cgroup` (cgroups(7)): the hierarchy's number, its controllers, the path.
fn names(text: &str, hierarchy: u32, path: &str) -> bool {
    let path = path.trim_end_matches('/');
    text.lines().any(|line| {
        let mut columns = line.splitn(3, ':');
        let is_of_it = columns.next().and_then(|number| number.parse().ok()) == Some(hierarchy);
        let rest = columns.nth(1).and_then(|own| own.strip_prefix(path));
        is_of_it && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Kills the processes directly in one cgroup. The pidfds are opened first, so the process that is then found in the cgroup is the
/// one that the signal reaches, however fast pids are used again.
fn kill_those_in(directory: &Path) -> Result<()> {
    let pids = cgroup_walk::processes(directory, PASS.processes)?.beginning();
    for some in pids.chunks(AT_ONCE) {
        let open = |&pid: &u32| {
            let raw = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
            Some((pid, pidfd_open(raw, PidfdFlags::empty()).ok()?))
        };
        let named: Vec<_> =
            some.iter().filter(|&&pid| pid != INIT && pid != std::process::id()).filter_map(open).collect();
        let mut members = cgroup_walk::processes(directory, PASS.processes)?.beginning();
        members.sort_unstable();
        for (pid, fd) in named {
            if members.binary_search(&pid).is_err() {
                continue;
            }
            match pidfd_send_signal(fd.as_fd(), Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot end process {pid}")),
            }
        }
    }
    Ok(())
}

/// Whether a process lives in a cgroup or below it, by its `cgroup.events`, which is read from its beginning. One that has been
/// removed has none.
fn is_populated(mut events: &File) -> bool {
    if events.seek(SeekFrom::Start(0)).is_err() {
        return false;
    }
    let text = bounded::take(&mut events, FIGURES, None).map(Bounded::beginning).unwrap_or_default();
    text.split(|&byte| byte == b'\n').any(|line| line == b"populated 1")
}

/// Waits for a change of a cgroup's `cgroup.events` since it was last read, no longer than `patience`.
fn wait_for_change(events: &File, patience: Duration) {
    let mut polled = [PollFd::new(events, PollFlags::PRI)];
    let patience = Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: patience.subsec_nanos().into() };
    // Interrupted or refused: what is there is looked at again.
    poll(&mut polled, Some(&patience)).ok();
}

#[cfg(test)]
mod tests;
