//! The kernel log's line about an OOM kill: it names the scope and the cgroup whose limit fired.
//!
//! Enrichment only: the log is rate-limited, may be switched off and may be flooded. A missing line costs two fields of
//! a verdict, never the verdict.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Seek as _, SeekFrom},
    os::fd::{AsRawFd, RawFd},
    os::unix::fs::OpenOptionsExt as _,
};

use anyhow::{Context as _, Result};
use tokio::{io::unix::AsyncFd, sync::mpsc};

const PATH: &str = "/dev/kmsg";
/// `PRINTK_MESSAGE_MAX` (printk internal.h): no record is longer.
const RECORD_MAX: usize = 2048;

/// What ran out (`enum oom_constraint`, oom.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Constraint {
    /// A cgroup's memory limit.
    Memcg,
    /// The host's memory, or that of all its nodes.
    None,
    /// The nodes of a cpuset or of a memory policy.
    Nodes,
}

/// One `oom-kill:` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OomLine {
    /// What ran out.
    pub(crate) constraint: Constraint,
    /// Cgroup whose limit fired, for [`Constraint::Memcg`].
    pub(crate) limit_owner: Option<String>,
    /// The thread that was chosen.
    pub(crate) tid: u32,
}

/// The log, from now on.
pub(crate) struct Kmsg {
    file: File,
}

impl AsRawFd for Kmsg {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Kmsg {
    /// Opens the log at its end, for reading without blocking.
    pub(crate) fn open() -> Result<Self> {
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(PATH)
            .with_context(|| format!("cannot open {PATH}"))?;
        file.seek(SeekFrom::End(0)).with_context(|| format!("cannot seek in {PATH}"))?;
        Ok(Self { file })
    }

    /// Reads what has come since, and returns its OOM lines.
    ///
    /// # Errors
    /// When the log cannot be read any more. Records that were overwritten unread are skipped: the log says so once
    /// and goes on at the oldest that is left.
    fn drain(&mut self) -> Result<Vec<OomLine>> {
        let mut lines = Vec::new();
        let mut buffer = [0u8; RECORD_MAX * 2];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(lines),
                Ok(len) => lines.extend(std::str::from_utf8(&buffer[..len]).ok().and_then(parse)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(lines),
                // EPIPE: overwritten unread (Documentation/ABI/testing/dev-kmsg).
                Err(error) if error.kind() == ErrorKind::BrokenPipe || error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read {PATH}")),
            }
        }
    }
}

/// Sends on the OOM lines of the log. The log failing ends the enrichment, not what it enriches.
///
/// # Errors
/// When the log cannot be waited for.
pub(crate) async fn follow(kmsg: Kmsg, lines: mpsc::Sender<OomLine>) -> Result<()> {
    // SAFETY: the log owns its descriptor, keeps it open and never exchanges it while it is registered.
    let mut kmsg = unsafe { AsyncFd::register(kmsg) }.context("cannot wait for the kernel's log")?;
    loop {
        kmsg.readable_mut().await.context("cannot wait for the kernel's log")?.clear_ready();
        match kmsg.get_mut().drain() {
            Ok(found) => {
                for line in found {
                    if lines.send(line).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Err(error) => {
                tracing::warn!("OOM kills will lack scope and limit from now on: {error:#}");
                return std::future::pending().await;
            }
        }
    }
}

/// `priority,sequence,time,flags;oom-kill:constraint=CONSTRAINT_MEMCG,…,oom_memcg=/a,task_memcg=/a/b,task=x,pid=7,uid=0`
fn parse(record: &str) -> Option<OomLine> {
    let (head, text) = record.split_once(';')?;
    // Facility 0 is the kernel; anything else was written by a process, which could claim what it likes.
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    if priority >> 3 != 0 {
        return None;
    }
    let text = text.lines().next()?.strip_prefix("oom-kill:")?;
    let constraint = match field(text, "constraint=")? {
        "CONSTRAINT_MEMCG" => Constraint::Memcg,
        "CONSTRAINT_NONE" => Constraint::None,
        "CONSTRAINT_CPUSET" | "CONSTRAINT_MEMORY_POLICY" => Constraint::Nodes,
        _ => return None,
    };
    // The task's name may hold commas and look like other fields, so the pid is looked for from the end.
    let (_, pid) = text.rsplit_once(",pid=")?;
    Some(OomLine {
        constraint,
        limit_owner: (constraint == Constraint::Memcg).then(|| field(text, ",oom_memcg=").map(str::to_owned)).flatten(),
        tid: pid.split(',').next()?.parse().ok()?,
    })
}

fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(key)?;
    rest.split(',').next()
}

/// Takes any text for a record of the log.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let Some(line) = parse(text) else { return };
    assert!(line.limit_owner.is_none_or(|owner| !owner.contains(',')), "one field");
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMCG: &str = "6,1203,9876543,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
        oom_memcg=/shop.slice,task_memcg=/shop.slice/web.service,task=web,pid=4711,uid=1000";

    #[test]
    fn a_memcg_line_names_the_owner_of_the_limit() {
        let want = OomLine { constraint: Constraint::Memcg, limit_owner: Some("/shop.slice".to_owned()), tid: 4711 };
        assert_eq!(parse(MEMCG), Some(want));
    }

    #[test]
    fn a_global_line_has_no_owner() {
        let line = "6,1,2,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
            task_memcg=/a,task=x,pid=7,uid=0";
        assert_eq!(parse(line), Some(OomLine { constraint: Constraint::None, limit_owner: None, tid: 7 }));
    }

    #[test]
    fn a_task_name_cannot_forge_its_pid_and_a_process_cannot_forge_a_line() {
        let hostile = MEMCG.replace("task=web", "task=a,pid=1,uid=0");
        assert_eq!(parse(&hostile).map(|line| line.tid), Some(4711));
        assert_eq!(parse(&MEMCG.replacen("6,", "14,", 1)), None, "facility user");
        assert_eq!(parse("6,1,2,-;something else"), None);
    }
}
