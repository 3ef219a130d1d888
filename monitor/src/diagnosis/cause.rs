//! What a death can be, with the names that operators and tools rely on.

use std::fmt;

use serde::Serialize;

use crate::text::Comm;

/// Whose memory ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// A cgroup's limit.
    Memcg,
    /// The host's memory.
    Global,
    /// The nodes of a cpuset or memory policy.
    Cpuset,
    /// A person asked for it with SysRq-f.
    Sysrq,
}

impl Scope {
    /// The metric label; `unknown` where neither a program nor the kernel's log could tell.
    pub(crate) fn label(scope: Option<Self>) -> &'static str {
        match scope {
            Some(Self::Memcg) => "memcg",
            Some(Self::Global) => "global",
            Some(Self::Cpuset) => "cpuset",
            Some(Self::Sysrq) => "sysrq",
            None => "unknown",
        }
    }
}

/// A process that did something to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Party {
    /// Process id.
    pub(crate) tgid: u32,
    /// Name of the acting thread.
    pub(crate) comm: Comm,
    /// User id.
    pub(crate) uid: u32,
}

/// Details of a kill for want of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct OomKill {
    /// Whose memory ran out; `None` when neither a program nor the kernel's log could tell.
    pub(crate) scope: Option<Scope>,
    /// The cgroup whose limit fired, for [`Scope::Memcg`].
    pub(crate) limit_owner: Option<String>,
    /// The process whose allocation failed; `None` when the mark was not seen.
    pub(crate) triggered_by: Option<Party>,
    /// From the kernel's decision to the end of the process, microseconds.
    pub(crate) mark_to_exit_us: Option<u64>,
}

/// The cause of a death.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Cause {
    /// Killed by the kernel for want of memory.
    OomKill(OomKill),
    /// Ended by a fault of its own, or by its own abort.
    Crash {
        /// Signal number.
        signal: u8,
        /// A core was written.
        core_dumped: bool,
    },
    /// Ended by a signal from outside.
    Killed {
        /// Signal number.
        signal: u8,
        /// Who sent it; `None`: the kernel, or a sender that was not recorded.
        by: Option<Party>,
        /// True when the kernel itself sent it and it was no OOM kill (end of a pid namespace, of a tracer, a resource limit).
        by_kernel: bool,
    },
    /// Ended by itself with a non-zero code.
    Exit {
        /// Exit code.
        code: u8,
    },
    /// Ended by itself with code 0.
    CleanExit,
}

impl Cause {
    /// The `kind`, as in JSON and metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::OomKill(_) => "oom_kill",
            Self::Crash { .. } => "crash",
            Self::Killed { .. } => "killed",
            Self::Exit { .. } => "exit",
            Self::CleanExit => "clean_exit",
        }
    }

    /// All kinds that this version gives, for series that exist from the start.
    pub(crate) const KINDS: [&'static str; 5] = ["oom_kill", "crash", "killed", "exit", "clean_exit"];
}

/// One line for people.
impl fmt::Display for Cause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OomKill(oom) => {
                out.write_str("killed for want of memory")?;
                match (oom.scope, &oom.limit_owner) {
                    (Some(Scope::Memcg), Some(owner)) => write!(out, " at the limit of {}", crate::text::Clean(owner))?,
                    (Some(Scope::Memcg), None) => out.write_str(" at a cgroup's limit")?,
                    (Some(Scope::Global), _) => out.write_str(" of the host")?,
                    (Some(Scope::Cpuset), _) => out.write_str(" in its cpuset")?,
                    (Some(Scope::Sysrq), _) => out.write_str(" by SysRq-f")?,
                    (None, _) => {}
                }
                if let Some(by) = oom.triggered_by {
                    write!(out, ", triggered by {by}")?;
                }
                Ok(())
            }
            Self::Crash { signal, core_dumped } => {
                write!(out, "crashed with SIG{}", super::signal_name(*signal))?;
                if *core_dumped { out.write_str(" (core dumped)") } else { Ok(()) }
            }
            Self::Killed { signal, by, by_kernel } => {
                write!(out, "killed with SIG{}", super::signal_name(*signal))?;
                match by {
                    Some(by) => write!(out, " by {by}"),
                    None if *by_kernel => out.write_str(" by the kernel, not for memory"),
                    None => out.write_str(", sender not seen"),
                }
            }
            Self::Exit { code } => write!(out, "exited with code {code}"),
            Self::CleanExit => out.write_str("exited cleanly"),
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} (pid {}, uid {})", self.comm, self.tgid, self.uid)
    }
}
