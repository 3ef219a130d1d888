//! Reaps children from before this process executed itself again (SIGHUP): services that live on, and helpers that were
//! ended with the old agent. Otherwise each would stay a zombie and keep its pid for as long as the agent lives.

use std::{io, path::Path};

use rustix::{
    io::Errno,
    process::{Pid, WaitOptions, waitpid},
};
use tokio::signal::unix::{SignalKind, signal};

use super::{bounded, process};

/// Bytes read of the list of children: enough for all possible pids (4,194,304, proc_sys_kernel(5)).
const LIST: usize = 64 << 20;
/// Entries of `/proc` that are read: all possible processes, and some.
const PROCESSES: usize = 4_194_304 + 1024;

/// All present children. Call it before this program starts any itself, while it has one thread: after exec(2) that
/// thread has them all.
pub(crate) fn left() -> Vec<Pid> {
    listed("/proc/thread-self/children").unwrap_or_else(|_| found())
}

/// Reads the kernel's list of children (proc_tid_children(5)), which needs CONFIG_PROC_CHILDREN.
fn listed(path: &str) -> io::Result<Vec<Pid>> {
    let text = bounded::text(path, LIST)?;
    Ok(text.split_ascii_whitespace().filter_map(pid).collect())
}

/// Searches `/proc` for processes whose parent is this process.
fn found() -> Vec<Pid> {
    let own = std::process::id();
    let ours = |tgid: u32| process::descent(tgid).is_some_and(|(parent, _)| parent == own);
    let mut found = Vec::new();
    let seen = bounded::visit(Path::new("/proc"), PROCESSES, None, |entry| {
        let name = entry.file_name();
        let tgid = name.to_str().filter(|name| name.parse().is_ok_and(ours));
        found.extend(tgid.and_then(pid));
    });
    // A child that is not found stays a zombie and does no other harm.
    seen.map_or_else(|_| Vec::new(), |_| found)
}

fn pid(text: &str) -> Option<Pid> {
    text.parse().ok().and_then(Pid::from_raw)
}

/// Waits for each child by its pid, and for no other. A child's pid is not reused until it was waited for; other code
/// waits for children that this program starts.
pub(crate) async fn reap(mut left: Vec<Pid>) {
    // Registered before the first check, so that no exit is missed between the two.
    let mut ends = match signal(SignalKind::child()) {
        Ok(ends) => ends,
        Err(error) => return tracing::warn!("children of the previous agent stay zombies: {error}"),
    };
    loop {
        left.retain(|&pid| is_running(pid));
        if left.is_empty() || ends.recv().await.is_none() {
            return;
        }
    }
}

/// False once it was waited for, or when it is not a child.
fn is_running(pid: Pid) -> bool {
    matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None) | Err(Errno::INTR))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn a_child_that_nobody_waits_for_is_reaped_and_one_that_somebody_waits_for_is_left() {
        let sleeper = || Command::new("sleep").arg("1000").spawn().expect("sleep starts");
        let (left, mut own) = (sleeper(), sleeper());
        let pid = |child: &std::process::Child| Pid::from_raw(child.id() as i32).expect("a pid");
        let reaping = tokio::spawn(reap(vec![pid(&left)]));
        for child in [&own, &left] {
            rustix::process::kill_process(pid(child), rustix::process::Signal::KILL).expect("killed");
        }
        reaping.await.expect("it ends with its last child");
        assert!(!is_running(pid(&left)), "it was waited for: it is no child any more");
        assert!(process::identity(left.id()).is_ok_and(|who| who.is_none()), "and no zombie");
        assert_eq!(own.wait().expect("it was left for us").code(), None);
    }

    #[test]
    fn children_are_found_with_the_kernel_s_list_and_without() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep starts");
        let pid = Pid::from_raw(child.id() as i32).expect("a pid");
        // This test's thread is the parent.
        match listed("/proc/thread-self/children") {
            Ok(all) => assert!(all.contains(&pid), "{all:?}"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
        }
        assert!(found().contains(&pid));
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(!found().contains(&pid));
    }
}
