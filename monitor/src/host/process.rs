//! Processes by identity: `/proc/PID/stat` names the start time, so a pid is never trusted alone.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
};

use anyhow::{Context as _, Result};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use super::bounded::{self, Bounded};

/// A process: its pid and when it started. Pids are used again within minutes under load; the pair is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Process id in the initial namespace.
    pub(crate) tgid: u32,
    /// Start, nanoseconds of CLOCK_BOOTTIME.
    pub(crate) start_ns: u64,
}

/// `/proc` gives start times in ticks of USER_HZ, which is 100 on every architecture that Linux still supports.
const TICK_NS: u64 = 10_000_000;

impl Identity {
    /// True when it started at `at_ns` or later, as far as that can be told.
    pub(crate) fn begins_after(self, at_ns: u64) -> bool {
        self.start_ns + TICK_NS > at_ns
    }

    /// True when both are the same process, though one start time may have been rounded down to a clock tick.
    pub(crate) fn matches(self, other: Self) -> bool {
        self.tgid == other.tgid && self.start_ns / TICK_NS == other.start_ns / TICK_NS
    }
}

/// Who has this pid now; `None` when nobody has. The start time is rounded down to 10 ms.
///
/// # Errors
/// When `/proc/PID/stat` exists and cannot be read or understood.
pub(crate) fn identity(tgid: u32) -> Result<Option<Identity>> {
    let stat = match stat(tgid) {
        Ok(stat) => stat,
        Err(error) if gone(&error) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read /proc/{tgid}/stat")),
    };
    started(tgid, &stat).with_context(|| format!("/proc/{tgid}/stat has no start time")).map(Some)
}

/// True when the process exists and has not ended.
pub(crate) fn is_alive(process: Identity) -> bool {
    stat(process.tgid)
        .is_ok_and(|stat| started(process.tgid, &stat).is_some_and(|now| now.matches(process)) && !has_ended(&stat))
}

/// The process with this pid as an owner names it; `None` when it does not live, or for 0.
///
/// # Errors
/// When it cannot be looked at.
pub(crate) fn living(pid: u32) -> Result<Option<Identity>> {
    if pid == 0 || is_zombie(pid) {
        return Ok(None);
    }
    identity(pid).with_context(|| format!("cannot look at process {pid}"))
}

/// True for a process that has ended and was not reaped yet. One whose first thread has left while others run shows the
/// same letter, and more than one thread.
pub(crate) fn is_zombie(tgid: u32) -> bool {
    stat(tgid).is_ok_and(|stat| has_ended(&stat))
}

/// Room for all of proc_pid_stat(5): some fifty numbers and a name.
const STAT: usize = 2048;

fn stat(tgid: u32) -> io::Result<Vec<u8>> {
    bounded::read(format!("/proc/{tgid}/stat"), STAT)?.whole()
}

fn started(tgid: u32, stat: &[u8]) -> Option<Identity> {
    Some(Identity { tgid, start_ns: start_ticks(stat)? * TICK_NS })
}

/// Fields 3 (state) and 20 (threads) of proc_pid_stat(5).
fn has_ended(stat: &[u8]) -> bool {
    fields(stat).is_some_and(|fields| {
        let threads = fields.get(17).and_then(|count| count.parse::<u32>().ok());
        fields.first() == Some(&"Z") && threads.is_none_or(|count| count <= 1)
    })
}

/// How many threads it has; `None` when it has gone.
pub(crate) fn threads(tgid: u32) -> Option<u64> {
    fields(&stat(tgid).ok()?)?.get(17)?.parse().ok()
}

/// Parent of a process, and who it is; `None` when it has gone.
pub(crate) fn descent(tgid: u32) -> Option<(u32, Identity)> {
    let stat = stat(tgid).ok()?;
    Some((fields(&stat)?.get(1)?.parse().ok()?, started(tgid, &stat)?))
}

/// Memory of a process that no reclaim frees, swap included, bytes; `None` when it has gone, and for kernel threads.
pub(crate) fn memory_held(tgid: u32) -> Option<u64> {
    let status = status(tgid).ok()?;
    let kib =
        |key| status.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let parts = [kib("RssAnon:")?, kib("RssShmem:")?, kib("VmSwap:").unwrap_or(0)];
    Some(parts.into_iter().sum::<u64>().saturating_mul(1024))
}

/// True while the kernel writes a core dump of the process, which may take a minute; it runs no more. False when not
/// known.
pub(crate) fn dumps_core(tgid: u32) -> bool {
    status(tgid).is_ok_and(|status| is_dumped(&status))
}

/// A process name may contain any bytes except a line feed, which the kernel escapes.
fn is_dumped(status: &str) -> bool {
    status.lines().any(|line| line.strip_prefix("CoreDumping:").is_some_and(|flag| flag.trim() == "1"))
}

/// Processor time that a process has used, seconds; `None` when it has gone.
pub(crate) fn processor_seconds(tgid: u32) -> Option<f64> {
    let stat = stat(tgid).ok()?;
    let fields = fields(&stat)?;
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    // Fields 14 and 15 of proc_pid_stat(5).
    Some((ticks(11)? + ticks(12)?) as f64 * TICK_NS as f64 / 1e9)
}

/// Bytes read of `/proc/PID/status`: some 1.5 KiB, and 11 for each supplementary group (65,536 at most,
/// credentials(7)).
const STATUS: usize = 1024 * 1024;

/// The text of `/proc/PID/status` (proc_pid_status(5)).
///
/// # Errors
/// When the process has gone.
pub(crate) fn status(tgid: u32) -> io::Result<String> {
    bounded::text(format!("/proc/{tgid}/status"), STATUS)
}

/// Bytes of a command line that identify it. execve(2) takes up to a quarter of the stack's limit, 2 MiB; a process can
/// make its own any length (`PR_SET_MM_MAP`).
const ARGUMENTS: usize = 64 * 1024;

/// A number that is the same for processes of the same program file with the same arguments; `None` when it has gone, or has
/// no arguments yet because it is just becoming that program. A file that was replaced, as a deploy does, is another one.
pub(crate) fn build(tgid: u32) -> Option<u64> {
    // Cached attributes are enough: a network file server that does not answer must not block us.
    let what = StatxFlags::BASIC_STATS;
    let file = statx(CWD, format!("/proc/{tgid}/exe"), AtFlags::STATX_DONT_SYNC, what).ok()?;
    let file = (file.stx_dev_major, file.stx_dev_minor, file.stx_ino, file.stx_size, file.stx_mtime);
    let (arguments, length) = match bounded::read(format!("/proc/{tgid}/cmdline"), ARGUMENTS).ok()? {
        Bounded::Whole(arguments) => (arguments, None),
        // Its full length, from fields 48 and 49.
        Bounded::Cut(arguments) => (arguments, stat(tgid).ok().and_then(|stat| arguments_length(&stat))),
    };
    if arguments.is_empty() {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    let ((major, minor, inode, size, changed), seconds) = (file, file.4.tv_sec);
    (major, minor, inode, size, seconds, changed.tv_nsec, arguments, length).hash(&mut hasher);
    Some(hasher.finish())
}

/// Name of the file that a process runs; `None` when the process or the file has gone.
pub(crate) fn program(tgid: u32) -> Option<String> {
    let path = bounded::link(format!("/proc/{tgid}/exe")).ok()?;
    let name = path.file_name()?.to_str()?;
    // A program that an upgrade has replaced runs on.
    Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
}

/// Length of the command line, from its start and end addresses: fields 48 and 49 of proc_pid_stat(5).
fn arguments_length(stat: &[u8]) -> Option<u64> {
    let fields = fields(stat)?;
    let at = |number: usize| fields.get(number)?.parse::<u64>().ok();
    at(46)?.checked_sub(at(45)?)
}

fn gone(error: &io::Error) -> bool {
    // ESRCH: the process went between open and read.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// The fields after the name, which is in parentheses and may hold any byte, also `)` and blanks.
fn fields(stat: &[u8]) -> Option<Vec<&str>> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    Some(std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_ascii_whitespace().collect())
}

/// Field 22 of proc_pid_stat(5): start in clock ticks since boot.
fn start_ticks(stat: &[u8]) -> Option<u64> {
    fields(stat)?.get(19)?.parse().ok()
}

/// Takes any bytes for `/proc/PID/stat`.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    has_ended(bytes);
    start_ticks(bytes);
    arguments_length(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = b"7 (a) R (b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 99 0";
        assert_eq!(start_ticks(stat), Some(12345));
        assert_eq!(fields(stat).and_then(|fields| fields.get(1).map(|ppid| ppid.to_string())), Some("1".to_owned()));
        assert_eq!(start_ticks(b"7 (cut"), None);
    }

    #[test]
    fn a_core_is_being_written_when_the_kernel_says_so_and_no_name_can_say_it() {
        assert!(is_dumped("Name:\tweb ÿ\nThreads:\t4\nCoreDumping:\t1\nTHP_enabled:\t1\n"));
        for status in ["Name:\tweb\nCoreDumping:\t0\n", "Name:\tCoreDumping:\t1\n", ""] {
            assert!(!is_dumped(status));
        }
        assert!(!dumps_core(std::process::id()));
    }

    #[test]
    fn a_process_whose_first_thread_has_left_has_not_ended() {
        let stat = |state, threads| format!("7 (a) {state} 1 7 7 0 -1 4 1 0 0 0 0 0 0 0 20 0 {threads} 0 12345 99 0");
        assert!(has_ended(stat("Z", 1).as_bytes()));
        assert!(!has_ended(stat("Z", 2).as_bytes()));
        assert!(!has_ended(stat("S", 1).as_bytes()));
    }

    /// The builds of these children, once each has executed its program; ends the children.
    fn builds<const COUNT: usize>(mut children: [std::process::Child; COUNT]) -> [Option<u64>; COUNT] {
        // A child has our own file until it executes its own.
        let ours = build(std::process::id());
        let builds = children.each_ref().map(|child| {
            std::iter::repeat_with(|| build(child.id())).find(|build| build.is_some() && *build != ours).flatten()
        });
        for child in &mut children {
            child.kill().expect("killed");
            child.wait().expect("it ends");
        }
        builds
    }

    #[test]
    fn a_build_is_the_same_for_the_same_program_and_arguments() {
        let sleeper = |seconds: &str| std::process::Command::new("sleep").arg(seconds).spawn().expect("sleep starts");
        let children = [sleeper("1000"), sleeper("1000"), sleeper("1001")];
        let builds = builds(children);
        assert!(builds[0] == builds[1] && builds[0] != builds[2], "{builds:?}");
    }

    #[test]
    fn a_command_line_is_told_by_its_begin_and_its_length() {
        // `read` has a shell wait for its standard input.
        let begin = "x".repeat(100_000);
        let waits = |end: &str| {
            let mut command = std::process::Command::new("/bin/sh");
            command.args(["-c", "read -r x; exit", "sh", &begin, &begin, end]);
            command.stdin(std::process::Stdio::piped()).spawn().expect("a shell starts")
        };
        let children = [waits("short"), waits("shore"), waits("much longer")];
        let builds = builds(children);
        assert_eq!(builds[0], builds[1], "what lies beyond is not read");
        assert_ne!(builds[0], builds[2], "its length is known");
    }

    #[test]
    fn this_process_is_itself_and_nobody_else() {
        let own = identity(std::process::id()).expect("readable").expect("alive");
        assert!(is_alive(own));
        assert!(!is_alive(Identity { start_ns: own.start_ns + 2 * TICK_NS, ..own }), "same pid, other start");
        assert_eq!(identity(u32::MAX).expect("no error"), None);
    }
}
