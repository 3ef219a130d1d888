//! Descriptors that this process was born with: from the service manager's store (sd_listen_fds(3)), or from the agent that this
//! process was before it began again.

use std::{
    env,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::Command,
};

use anyhow::{Context as _, Result};
use rustix::io::{FdFlags, fcntl_setfd};

use super::bounded;

/// Names and numbers, `name=number` with a space between, of what an agent left for itself.
pub(crate) const VARIABLE: &str = "DEFIB_HANDOVER";
/// The first descriptor that a service manager passes (`SD_LISTEN_FDS_START`, sd-daemon.h).
const FIRST: i32 = 3;
/// Tells an agent that begins again where the one before had its pins.
pub(crate) const PINNED: &str = "DEFIB_PINNED";
/// How the names of maps, programs and links begin (anon_inode_getfile in kernel/bpf/syscall.c), brackets aside.
const OURS: &str = "bpf";
/// What the manager's protocol says of them.
pub(crate) const OF_THE_MANAGER: [&str; 3] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// A descriptor and what it is called.
pub(crate) type Named = (String, OwnedFd);

/// Takes them. Once, and before anything else of this process opens descriptors that it closes again.
pub(crate) fn take() -> Vec<Named> {
    let variable = |name| env::var(name).ok();
    let listed = match variable(VARIABLE) {
        Some(left) => parse(&left),
        None => {
            passed([variable("LISTEN_FDS"), variable("LISTEN_PID"), variable("LISTEN_FDNAMES")], std::process::id())
        }
    };
    listed.into_iter().filter_map(|(name, number)| Some((name, own(number)?))).collect()
}

fn parse(left: &str) -> Vec<(String, i32)> {
    let pair = |text: &str| {
        let (name, number) = text.split_once('=')?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    left.split(' ').filter_map(pair).collect()
}

fn passed([count, pid, names]: [Option<String>; 3], own: u32) -> Vec<(String, i32)> {
    let ours = pid.and_then(|pid| pid.parse().ok()) == Some(own);
    let count: i32 = count.filter(|_| ours).and_then(|count| count.parse().ok()).unwrap_or(0);
    let names = names.unwrap_or_default();
    names.split(':').map(ToOwned::to_owned).zip(FIRST..FIRST.saturating_add(count)).collect()
}

/// `None` when that is no open map, program or link of the kernel's. From now on our children do not inherit it.
fn own(number: i32) -> Option<OwnedFd> {
    let target = bounded::link(format!("/proc/self/fd/{number}")).ok()?;
    let kind = target.to_string_lossy();
    if number < FIRST || !kind.trim_start_matches("anon_inode:").trim_start_matches('[').starts_with(OURS) {
        return None;
    }
    // SAFETY: it is open, and whoever started us has opened it for us, which is said once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&descriptor, FdFlags::CLOEXEC).ok()?;
    Some(descriptor)
}

/// Has `command` inherit these, for [`take`] in it.
///
/// # Errors
/// When a descriptor cannot be kept open.
pub(crate) fn leave(command: &mut Command, descriptors: &[Named]) -> Result<()> {
    let mut left = Vec::new();
    for (name, descriptor) in descriptors {
        fcntl_setfd(descriptor, FdFlags::empty()).with_context(|| format!("cannot hand over {name}"))?;
        left.push(format!("{name}={}", descriptor.as_raw_fd()));
    }
    for name in OF_THE_MANAGER {
        command.env_remove(name);
    }
    command.env(VARIABLE, left.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_manager_passes_is_ours_when_it_says_so() {
        let given = |count: &str, pid: &str, names: &str| {
            passed([count, pid, names].map(|text| Some(text.to_owned())), 7).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(given("2", "7", "a:b"), [("a".to_owned(), 3), ("b".to_owned(), 4)]);
        assert_eq!(given("1", "7", "a:b"), [("a".to_owned(), 3)]);
        assert_eq!(given("2", "8", "a:b"), []);
        assert_eq!(given("-1", "7", "a"), []);
        assert_eq!(given("x", "7", "a"), []);
        assert_eq!(passed([None, None, None], 7), []);
    }

    #[test]
    fn what_an_agent_left_is_found_by_name_and_nonsense_is_not() {
        assert_eq!(parse("a=11 b=12 c d= e=x"), [("a".to_owned(), 11), ("b".to_owned(), 12)]);
        assert_eq!(parse(""), []);
        assert!(own(1).is_none() && own(-1).is_none() && own(1_000_000).is_none());
    }

    #[test]
    fn a_command_inherits_what_was_left_for_it() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = Command::new("/bin/sh");
        leave(&mut command, &[("a pipe".replace(' ', "-"), OwnedFd::from(writer))]).expect("left");
        let output = command.args(["-c", "echo $DEFIB_HANDOVER"]).output().expect("a shell");
        let listed = parse(String::from_utf8_lossy(&output.stdout).trim());
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_eq!(listed[0].0, "a-pipe");
        drop(reader);
    }
}
