//! Other programs that watch processes end, as somebody at a prompt would start them; each ends when it is dropped.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::agent::Running;
use crate::process;

/// From the start of any of them until it is attached. bpftrace translates its script first, the slowest of them.
const STARTING: Duration = Duration::from_secs(2);

/// A peer with the name that the tables give it, and how it is started.
pub(super) type Peer = (&'static str, fn() -> Result<Option<Running>>);

/// libbpf-tools: tells of each exit.
pub(super) const EXITSNOOP: Peer =
    ("libbpf-tools `exitsnoop`", || started("exitsnoop", |path| traced(path, &[]), Stdio::null()));

/// Counts exits, and tells the count at its end: the least that a script can do.
pub(super) const BPFTRACE: Peer = ("`bpftrace`, counting exits", || bpftrace(COUNT, Stdio::null()));

/// Process events by netlink: it has no program in the kernel.
pub(super) const FORKSTAT: Peer = ("`forkstat` (process events by netlink)", || {
    started("forkstat", |path| command(path, &["-e", "exit"]), Stdio::null())
});

const COUNT: &str = "tracepoint:sched:sched_process_exit { @exits = count(); }";

/// A bpftrace that runs this script, attached.
pub(super) fn bpftrace(script: &str, out: Stdio) -> Result<Option<Running>> {
    started("bpftrace", |path| traced(path, &["-e", script]), out)
}

/// A running peer; `None` where it is not installed or cannot attach.
fn started(program: &str, command: impl FnOnce(PathBuf) -> Command, out: Stdio) -> Result<Option<Running>> {
    let Some(path) = process::find(program) else { return Ok(None) };
    let mut command = command(path);
    // What they say at their start is of no use here: bpftrace complains of a limit that recent kernels do not have.
    let child = command.stdout(out).stderr(Stdio::null()).spawn().with_context(|| format!("cannot start {program}"))?;
    let mut peer = Running(child);
    sleep(STARTING);
    Ok(if peer.0.try_wait()?.is_none() { Some(peer) } else { None })
}

fn command(path: PathBuf, arguments: &[&str]) -> Command {
    let mut command = Command::new(path);
    command.args(arguments);
    command
}

/// One that finds its tracepoint through tracefs, which not every machine has mounted: it gets one in a mount namespace of
/// its own, so that nothing is left behind.
fn traced(path: PathBuf, arguments: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    let script = "mount -t tracefs tracefs /sys/kernel/tracing; exec \"$0\" \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(path).args(arguments);
    command
}
