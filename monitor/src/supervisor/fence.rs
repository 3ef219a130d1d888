//! Before a service is started again, nothing of its old incarnation may be left: two of them on one port, one data
//! directory, one lock file are worse than none.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep};

use crate::host::{
    cgroup::Hierarchy,
    process::{self, Identity},
};

/// What is left of an old incarnation has this long to go.
const TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// Ends what is left in the cgroup `path` of `service`, by pidfd, and waits until it has gone.
///
/// # Errors
/// When something is left after ten seconds, or the cgroup holds others than the service.
pub(super) async fn clear(hierarchy: &Hierarchy, path: &str, service: &str) -> Result<()> {
    let begin = Instant::now();
    loop {
        let left = members(hierarchy, path)?;
        if left.is_empty() {
            return Ok(());
        }
        // Should the cgroup be somebody else's after all: whatever holds these two is no left-over.
        ensure!(
            !left.contains(&1) && !left.contains(&std::process::id()),
            "the cgroup {path} of {service} holds other processes than the service's; give it one of its own"
        );
        if begin.elapsed() > TIMEOUT {
            bail!("{} processes of the old incarnation of {service} do not end: {left:?}", left.len());
        }
        for pid in left {
            kill(hierarchy, path, pid)
                .with_context(|| format!("cannot end process {pid} of the old incarnation of {service}"))?;
        }
        sleep(PAUSE).await;
    }
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

/// Kills `pid` when it still is a member. The pidfd is opened first, so the process that is then found in the cgroup is the
/// one that the signal reaches, however fast pids are used again.
fn kill(hierarchy: &Hierarchy, path: &str, pid: u32) -> Result<()> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let Ok(fd) = pidfd_open(raw, PidfdFlags::empty()) else { return Ok(()) };
    if !members(hierarchy, path)?.contains(&pid) {
        return Ok(());
    }
    match pidfd_send_signal(&fd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// All processes in a cgroup and below it that have not ended; none when it does not exist.
fn members(hierarchy: &Hierarchy, path: &str) -> Result<Vec<u32>> {
    let mut members = hierarchy.members(path)?;
    // A zombie has ended; whoever shall reap it, it holds nothing.
    members.retain(|&pid| !process::is_zombie(pid));
    Ok(members)
}
