//! What a death can be, with the names that operators and tools rely on.

use std::{fmt, sync::Arc};

use serde::Serialize;

use super::{evidence::Item, site::Site};
use crate::text::{Clean, Comm};

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
    /// All of [`Self::label`], for series that exist from the start.
    pub(crate) const LABELS: [&'static str; 5] = ["memcg", "global", "cpuset", "sysrq", "unknown"];

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Party {
    /// Process id.
    pub(crate) tgid: u32,
    /// Name of the acting thread.
    pub(crate) comm: Comm,
    /// User id.
    pub(crate) uid: u32,
    /// The service that it belongs to, when its cgroup is known.
    pub(crate) service: Option<Arc<str>>,
}

/// What an OOM victim held when it was chosen: the numbers of the kernel's own report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct VictimMemory {
    /// Size of the address space.
    pub(crate) total_vm_bytes: u64,
    /// Resident anonymous memory.
    pub(crate) anon_rss_bytes: u64,
    /// Resident pages of files.
    pub(crate) file_rss_bytes: u64,
    /// Resident shared memory.
    pub(crate) shmem_rss_bytes: u64,
    /// Page tables.
    pub(crate) page_tables_bytes: u64,
    /// How readily the OOM killer takes it, −1000 to 1000.
    pub(crate) oom_score_adj: i32,
}

/// Several processes killed by one decision (`memory.oom.group`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct GroupKill {
    /// The same for all of them.
    pub(crate) id: u64,
    /// How many processes were killed.
    pub(crate) kills: usize,
}

/// Details of a kill for want of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct OomKill {
    /// Whose memory ran out; `None` when neither a program nor the kernel's log could tell.
    pub(crate) scope: Option<Scope>,
    /// The cgroup whose limit fired, for [`Scope::Memcg`].
    pub(crate) limit_owner: Option<String>,
    /// That limit in bytes.
    pub(crate) limit_bytes: Option<u64>,
    /// The process whose allocation failed; `None` when the mark was not seen.
    pub(crate) triggered_by: Option<Party>,
    /// From the kernel's decision to the end of the process, microseconds.
    pub(crate) mark_to_exit_us: Option<u64>,
    /// What it held.
    pub(crate) memory: Option<VictimMemory>,
    /// Killed with others.
    pub(crate) group: Option<GroupKill>,
    /// The process that was chosen, when this one died for sharing its memory.
    pub(crate) shared_with: Option<u32>,
    /// How often the kernel counts it (`oom_kill` of `/proc/vmstat` and of the cgroup): 1; 0 for a process that shared the
    /// chosen one's memory; 2 for the chosen one of a group, which it kills once more with the group.
    pub(crate) kernel_count: u64,
}

/// Why somebody killed a process, where more is known than the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    /// Its tracer ended, and had asked for this (`PTRACE_O_EXITKILL`).
    TracerExit,
    /// It used up its processor time (the hard `RLIMIT_CPU`).
    CpuLimit,
    /// Somebody wrote to `cgroup.kill`.
    CgroupKill,
    /// Its service manager gave up waiting for its start.
    StartTimeout,
    /// Its service manager let it run no longer (`RuntimeMaxSec=`).
    RuntimeLimit,
    /// Its service manager ended the rest of the unit after an OOM kill (`OOMPolicy=`).
    OomPolicy,
    /// It made a system call that the strict mode of seccomp does not allow.
    SeccompStrict,
    /// The kernel ended it without a signal, as it does after an oops in its context.
    KernelOops,
    /// It wrote to a pipe or socket that has no reader any more.
    BrokenPipe,
    /// Its parent ended, and it had asked for a signal then (`PR_SET_PDEATHSIG`).
    ParentExit,
    /// Its terminal was closed.
    TerminalGone,
    /// Somebody pressed a key at its terminal (Ctrl-C, Ctrl-\).
    TerminalKey,
    /// A timer of its own ran out (alarm(2), setitimer(2)).
    Timer,
    /// A signal with a code of timers, message queues or I/O; another process can send such a code too.
    Event,
}

/// Why a process crashed, where more is known than the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    /// The hardware reported an error in memory of the process (`BUS_MCEERR_AR`, `BUS_MCEERR_AO`).
    MemoryError,
    /// It made a system call that its seccomp filter forbids.
    Seccomp,
}

/// Why a process exited with a code, where more is known than the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ExitReason {
    /// A program was not found (127), could not be executed (126), or a service manager could not start one (203).
    ExecFailed,
    /// Its cgroup had just refused a new process or thread (`pids.max`).
    PidsLimit,
}

/// The cause of a death.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Cause {
    /// Killed by the kernel for want of memory.
    OomKill(OomKill),
    /// Killed by a program that watches over the host's memory.
    UserspaceOomKill {
        /// The signal that it sent.
        signal: u8,
        /// The program.
        by: Party,
    },
    /// Ended by itself, in all likelihood because it got no more memory.
    AppOomProbable {
        /// 0 to 1.
        score: f64,
        /// What makes the score.
        evidence: Vec<Weighed>,
        /// Where it was, when it ended by a signal.
        site: Option<Site>,
    },
    /// Ended by a fault of its own, or by its own abort.
    Crash {
        /// Signal number.
        signal: u8,
        /// A core was written.
        core_dumped: bool,
        /// Why, where that is known.
        reason: Option<Fault>,
        /// Where; `None`: not taken.
        site: Option<Site>,
    },
    /// Ended by a signal from outside.
    Killed {
        /// Signal number.
        signal: u8,
        /// Who sent it; `None`: the kernel, or a sender that was not recorded.
        by: Option<Party>,
        /// True when the kernel itself sent it and it was no OOM kill.
        by_kernel: bool,
        /// Why, where that is known.
        reason: Option<Reason>,
    },
    /// Its supervisor stopped it on purpose.
    Stopped {
        /// The signal that ended it; `None`: it exited after it was asked to.
        signal: Option<u8>,
        /// The supervisor.
        by: Party,
        /// It had been asked to end, did not, and was killed.
        forced: bool,
    },
    /// Its service manager ended it because it gave no sign of life.
    Watchdog {
        /// The signal that ended it.
        signal: u8,
        /// The service manager.
        by: Party,
    },
    /// The first process of its pid namespace ended, and the kernel took the others with it.
    ContainerTeardown {
        /// That first process.
        by: Party,
    },
    /// Ended by itself with a non-zero code.
    Exit {
        /// Exit code.
        code: u8,
        /// Why, where that is known.
        reason: Option<ExitReason>,
    },
    /// Ended by itself with code 0.
    CleanExit,
    /// Killed, and nothing says by whom.
    Unknown {
        /// Signal number.
        signal: u8,
    },
}

/// Evidence with its weight.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Weighed {
    /// What.
    #[serde(flatten)]
    pub(crate) item: Item,
    /// How likely it alone makes the cause, 0 to 1.
    pub(crate) weight: f64,
}

impl Cause {
    /// Whether memory was what it wanted.
    pub(crate) fn is_want_of_memory(&self) -> bool {
        matches!(self, Self::OomKill(_) | Self::UserspaceOomKill { .. } | Self::AppOomProbable { .. })
    }

    /// The `kind`, as in JSON and metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::OomKill(_) => "oom_kill",
            Self::UserspaceOomKill { .. } => "userspace_oom_kill",
            Self::AppOomProbable { .. } => "app_oom_probable",
            Self::Crash { .. } => "crash",
            Self::Killed { .. } => "killed",
            Self::Stopped { .. } => "stopped",
            Self::Watchdog { .. } => "watchdog",
            Self::ContainerTeardown { .. } => "container_teardown",
            Self::Exit { .. } => "exit",
            Self::CleanExit => "clean_exit",
            Self::Unknown { .. } => "unknown",
        }
    }

    /// All kinds, for series that exist from the start.
    pub(crate) const KINDS: [&'static str; 11] = [
        "oom_kill",
        "userspace_oom_kill",
        "app_oom_probable",
        "crash",
        "killed",
        "stopped",
        "watchdog",
        "container_teardown",
        "exit",
        "clean_exit",
        "unknown",
    ];

    /// Where the process was, for a death that has such a place.
    pub(crate) fn site_mut(&mut self) -> Option<&mut Site> {
        match self {
            Self::Crash { site, .. } | Self::AppOomProbable { site, .. } => site.as_mut(),
            _ => None,
        }
    }

    /// Likewise.
    pub(crate) fn site(&self) -> Option<&Site> {
        match self {
            Self::Crash { site, .. } | Self::AppOomProbable { site, .. } => site.as_ref(),
            _ => None,
        }
    }
}

/// One line for people.
impl fmt::Display for Cause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OomKill(oom) => write!(out, "{oom}"),
            Self::UserspaceOomKill { signal, by } => {
                write!(out, "killed with SIG{} for want of memory by {by}", super::signal_name(*signal))
            }
            Self::AppOomProbable { score, evidence, .. } => {
                write!(out, "probably out of memory by itself ({:.0} %", score * 100.0)?;
                for Weighed { item, .. } in evidence {
                    write!(out, "; {}", item.finding)?;
                }
                out.write_str(")")
            }
            Self::Crash { signal, core_dumped, reason, site } => {
                write!(out, "crashed with SIG{}", super::signal_name(*signal))?;
                out.write_str(match reason {
                    None => "",
                    Some(Fault::MemoryError) => " on a memory error of the hardware",
                    Some(Fault::Seccomp) => " on a system call that its seccomp filter forbids",
                })?;
                if let Some(place) = site.as_ref().and_then(Site::innermost) {
                    write!(out, " at {place}")?;
                }
                if *core_dumped { out.write_str(" (core dumped)") } else { Ok(()) }
            }
            Self::Killed { signal, by, by_kernel, reason } => {
                write!(out, "killed with SIG{}", super::signal_name(*signal))?;
                match by {
                    Some(by) => write!(out, " by {by}")?,
                    None if *by_kernel && reason.is_none() => out.write_str(" by the kernel, not for memory")?,
                    None if *by_kernel => out.write_str(" by the kernel")?,
                    // The reason already says what is known.
                    None if reason.is_some() => {}
                    None => out.write_str(", sender not seen")?,
                }
                out.write_str(match reason {
                    None => "",
                    Some(Reason::TracerExit) => " because its tracer ended",
                    Some(Reason::CpuLimit) => " at its limit of processor time",
                    Some(Reason::CgroupKill) => " through cgroup.kill",
                    Some(Reason::StartTimeout) => " because its start took too long",
                    Some(Reason::RuntimeLimit) => " because it may not run longer",
                    Some(Reason::OomPolicy) => " after an OOM kill in its unit",
                    Some(Reason::SeccompStrict) => " for a system call that seccomp's strict mode forbids",
                    Some(Reason::KernelOops) => " without a signal, as after an oops of the kernel (its log says more)",
                    Some(Reason::BrokenPipe) => ": it wrote to a pipe or socket that nobody reads any more",
                    Some(Reason::ParentExit) => " because its parent ended",
                    Some(Reason::TerminalGone) => " because its terminal was closed",
                    Some(Reason::TerminalKey) => " by a key at its terminal",
                    Some(Reason::Timer) => " when its own timer ran out",
                    Some(Reason::Event) => " with the code of a timer, a message queue or I/O (a process can fake it)",
                })
            }
            Self::Stopped { signal: None, by, .. } => write!(out, "stopped by {by}"),
            Self::Stopped { signal: Some(signal), by, forced } => {
                write!(out, "stopped with SIG{} by {by}", super::signal_name(*signal))?;
                if *forced { out.write_str(", after it had not ended in time") } else { Ok(()) }
            }
            Self::Watchdog { signal, by } => {
                write!(out, "ended with SIG{} by {by} for want of a sign of life", super::signal_name(*signal))
            }
            Self::ContainerTeardown { by } => write!(out, "taken along by the end of its container ({by})"),
            Self::Exit { code, reason } => {
                write!(out, "exited with code {code}")?;
                match (reason, code) {
                    (None, _) => Ok(()),
                    (Some(ExitReason::ExecFailed), 127) => out.write_str(" (by convention: a program was not found)"),
                    (Some(ExitReason::ExecFailed), _) => {
                        out.write_str(" (by convention: a program could not be executed)")
                    }
                    (Some(ExitReason::PidsLimit), _) => {
                        out.write_str(" after its cgroup had refused a new process or thread (pids.max)")
                    }
                }
            }
            Self::CleanExit => out.write_str("exited cleanly"),
            Self::Unknown { signal } => {
                write!(out, "ended by SIG{}, and nothing says by whom", super::signal_name(*signal))
            }
        }
    }
}

impl fmt::Display for OomKill {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("killed for want of memory")?;
        match (self.scope, &self.limit_owner) {
            (Some(Scope::Memcg), Some(owner)) => write!(out, " at the limit of {}", Clean(owner))?,
            (Some(Scope::Memcg), None) => out.write_str(" at a cgroup's limit")?,
            (Some(Scope::Global), _) => out.write_str(" of the host")?,
            (Some(Scope::Cpuset), _) => out.write_str(" in its cpuset")?,
            (Some(Scope::Sysrq), _) => out.write_str(" by SysRq-f")?,
            (None, _) => {}
        }
        if let Some(by) = &self.triggered_by {
            write!(out, ", triggered by {by}")?;
        }
        if let Some(GroupKill { kills, .. }) = self.group {
            write!(out, ", {kills} processes at once")?;
        }
        if let Some(tgid) = self.shared_with {
            write!(out, ", for sharing the memory of process {tgid}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Party {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} (pid {}, uid {}", self.comm, self.tgid, self.uid)?;
        if let Some(service) = &self.service {
            write!(out, ", {}", Clean(service))?;
        }
        out.write_str(")")
    }
}
