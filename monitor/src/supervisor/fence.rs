//! Before a service is started again, nothing of its old incarnation may be left: two of them on one port, one data
//! directory, one lock file are worse than none.
//!
//! `cgroup.kill` (v2, Linux 5.14 and newer) kills the whole cgroup at once, also processes that are being forked.
//! Elsewhere passes kill the processes one by one: open a pidfd, check that the process is in the cgroup, kill it.
//! Between two passes the kernel says when the cgroup is empty (`cgroup.events`, v2), or the list is read again (v1).
//!
//! A fence blocks, so it runs on its own thread: it delays neither the fences of other services nor the rest of the
//! agent.

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
/// Pause between two passes: 5 ms, doubled each time, up to 100 ms. Killed processes need time to end.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// `cgroup.kill` is written again after this, in case processes were moved into the cgroup.
const AGAIN: Duration = Duration::from_secs(1);
/// Bounds of one pass; the next pass takes the rest.
const PASS: Bounds = Bounds { cgroups: 65_536, processes: 65_536, time: Duration::from_secs(2) };
/// Pidfds open at a time: the agent may have some thousand files open.
const AT_ONCE: usize = 256;
/// Processes that an error names.
const NAMED: usize = 8;
/// Bytes of `/proc/PID/cgroup`: a path of up to 4096 bytes for each of some fifteen hierarchies.
const OWN_CGROUPS: usize = 64 * 1024;
/// The first process of the host, or of the container that this agent runs in.
const INIT: u32 = 1;

/// Kills all processes left in the cgroup `path` of `service`, and waits until they have ended.
///
/// # Errors
/// When processes are left after ten seconds, or the cgroup also holds processes that are not the service's.
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

/// A cgroup whose processes are to be killed.
#[derive(Debug)]
struct Fence {
    directory: PathBuf,
    path: String,
    service: String,
    /// The hierarchy's version, and its number in `/proc/PID/cgroup`.
    hierarchy: (Version, u32),
}

impl Fence {
    fn clear(&self, until: Instant) -> Result<()> {
        // A cgroup that holds PID 1 or this agent is not a service's own: refuse it.
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
            // On v2, `cgroup.events` has just said that processes remain; an empty list does not disprove it.
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

    /// v2: `cgroup.events`, which says whether the cgroup or one below it has processes; poll(2) reports its changes.
    fn events(&self) -> Option<File> {
        (self.hierarchy.0 == Version::V2).then(|| File::open(self.directory.join("cgroup.events")).ok()).flatten()
    }

    /// All processes in the cgroup and below it that have not ended.
    fn members(&self) -> Result<Bounded<Vec<u32>>> {
        let members = cgroup_walk::members(&self.directory, PASS)?;
        Ok(members.map(|mut pids| {
            // A zombie has ended and holds no resources. v2 lists none.
            pids.retain(|&pid| self.hierarchy.0 == Version::V2 || !process::is_zombie(pid));
            pids
        }))
    }

    /// Writes `cgroup.kill`; true when the kernel kills all processes of the cgroup and of those below it. Kernels
    /// before 5.14 and v1 have no such file, and a threaded cgroup refuses.
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
            // The cgroup is gone, or the list was cut and the next pass takes the rest.
            (Err(_) | Ok(_), None) => Ok(()),
            (_, Some(error)) => Err(error),
        }
    }
}

/// Whether `/proc/PID/cgroup` names the cgroup `path` of a hierarchy or one below it. In a cgroup namespace other than
/// the mount's the paths differ, and only the cgroup's list of processes tells.
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

/// Kills the processes directly in one cgroup. Opens the pidfds first and checks membership after that, so the signal
/// reaches the process that was checked, even when pids are reused fast.
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

/// Whether a cgroup or one below it has processes, by its `cgroup.events`, read from the beginning. False for a removed
/// cgroup.
fn is_populated(mut events: &File) -> bool {
    if events.seek(SeekFrom::Start(0)).is_err() {
        return false;
    }
    let text = bounded::take(&mut events, FIGURES, None).map(Bounded::beginning).unwrap_or_default();
    text.split(|&byte| byte == b'\n').any(|line| line == b"populated 1")
}

/// Waits until a cgroup's `cgroup.events` has changed since it was last read, no longer than `patience`.
fn wait_for_change(events: &File, patience: Duration) {
    let mut polled = [PollFd::new(events, PollFlags::PRI)];
    let patience = Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: patience.subsec_nanos().into() };
    // If interrupted or refused, the caller reads the file again anyway.
    poll(&mut polled, Some(&patience)).ok();
}

#[cfg(test)]
mod tests;
