//! What this process may do, what of that it gives up, and what the kernel allows at all.

use anyhow::{Context as _, Result};
use rustix::thread::{CapabilitySet, capabilities, remove_capability_from_bounding_set, set_capabilities};

use super::{
    bounded::{self, FIGURES},
    process,
};

/// A capability that Defib needs, with its bit (uapi capability.h) and what needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capability {
    /// Name as `setcap` and systemd spell it.
    pub(crate) name: &'static str,
    bit: u32,
    /// What it is for.
    pub(crate) purpose: &'static str,
}

/// Needed to see deaths at all.
pub(crate) const REQUIRED: &[Capability] = &[
    Capability { name: "CAP_BPF", bit: 39, purpose: "load the kernel programs" },
    Capability { name: "CAP_PERFMON", bit: 38, purpose: "attach them to tracepoints and read kernel fields" },
];

/// Needed to write where only root may.
pub(crate) const DAC_OVERRIDE: Capability =
    Capability { name: "CAP_DAC_OVERRIDE", bit: 1, purpose: "make and enter cgroups of command services" };

/// Needed for more than seeing.
pub(crate) const OPTIONAL: &[Capability] = &[
    Capability { name: "CAP_SYSLOG", bit: 34, purpose: "read /dev/kmsg, which names the limit behind an OOM kill" },
    DAC_OVERRIDE,
    Capability { name: "CAP_KILL", bit: 5, purpose: "clear what is left of a dead service before a restart" },
    Capability { name: "CAP_SYS_ADMIN", bit: 21, purpose: "measure the programs' own run time (bpf_stats)" },
];

/// What an agent keeps when it begins; why each is needed, and by what, is in docs/security.md. BPF and PERFMON are needed
/// later too: to read maps on kernels before 5.19, and to attach again what somebody has detached.
const KEPT: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::SYSLOG)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::IPC_LOCK);
/// Of those, what serves to see others, and what no service of ours gets unless its configuration says so.
pub(crate) const EYES: [(&str, CapabilitySet); 4] = [
    ("CAP_BPF", CapabilitySet::BPF),
    ("CAP_PERFMON", CapabilitySet::PERFMON),
    ("CAP_SYSLOG", CapabilitySet::SYSLOG),
    ("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE),
];
/// What reads the symbols of a program that has crashed.
const SYMBOLS: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH);

/// What traces the growth of a program's memory.
const TRACING: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::PERFMON).union(SYMBOLS);

/// What a configuration needs beyond seeing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Writes where file modes do not let root: the root of the cgroups, a HAProxy's socket.
    pub(crate) writes: bool,
    /// Starts services, which get what the agent was started with: where a process cannot gain rights (`NoNewPrivileges`),
    /// what the agent has given up its children do not have either.
    pub(crate) starts: bool,
}

/// Gives up what an agent does not need. To be called before there is a second thread: capabilities are a thread's own.
///
/// # Errors
/// When the kernel refuses, which it has no reason to.
pub(crate) fn give_up(needs: Needs) -> Result<()> {
    let had = capabilities(None).context("cannot ask for this process' capabilities")?;
    let mut kept = had.permitted & KEPT;
    if needs.writes {
        kept |= had.permitted & CapabilitySet::DAC_OVERRIDE;
    }
    if !kept.contains(CapabilitySet::BPF | CapabilitySet::PERFMON) {
        // It includes both, as it did before 5.8.
        kept |= had.permitted & CapabilitySet::SYS_ADMIN;
    }
    let mut sets = had;
    sets.effective = kept;
    if !needs.starts {
        sets.permitted = kept;
        // The ambient set follows: what a user other than root hands on to the agent that begins again in its place.
        sets.inheritable &= kept;
    }
    set_capabilities(None, sets).context("cannot give up capabilities")
}

/// Takes from this process, and from the program that it becomes, what serves the agent only.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn hand_on(granted: &[String]) -> Result<()> {
    let taken = EYES.iter().filter(|(name, _)| !granted.iter().any(|granted| granted == name));
    limit_to(CapabilitySet::all() - taken.fold(CapabilitySet::empty(), |all, (_, one)| all | *one))
}

/// Leaves this process what reads other people's programs, and no way to more.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn only_symbols() -> Result<()> {
    limit_to(SYMBOLS)?;
    rustix::thread::set_no_new_privs(true).context("cannot rule out that this process gains rights")
}

/// Leaves this process what watches a program's allocator, and no way to more: loading and attaching probes, its memory and its
/// files.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn only_tracing() -> Result<()> {
    let had = capabilities(None).context("cannot ask for this process' capabilities")?.permitted;
    let mut left = TRACING;
    if !had.contains(CapabilitySet::BPF | CapabilitySet::PERFMON) {
        // As in an agent that was given this one only.
        left |= CapabilitySet::SYS_ADMIN;
    }
    limit_to(left)?;
    rustix::thread::set_no_new_privs(true).context("cannot rule out that this process gains rights")
}

fn limit_to(left: CapabilitySet) -> Result<()> {
    let mut sets = capabilities(None).context("cannot ask for this process' capabilities")?;
    for taken in CapabilitySet::all() - left {
        // Without CAP_SETPCAP only the process' own sets shrink; under NoNewPrivileges what follows can have no more.
        remove_capability_from_bounding_set(taken).ok();
    }
    sets.effective &= left;
    sets.permitted &= left;
    sets.inheritable &= left;
    set_capabilities(None, sets).context("cannot give up capabilities")
}

/// The effective capabilities of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effective(u64);

impl Effective {
    /// Reads `/proc/self/status`.
    pub(crate) fn of_self() -> Result<Self> {
        let text = process::status(std::process::id()).context("cannot read /proc/self/status")?;
        let hex =
            text.lines().find_map(|line| line.strip_prefix("CapEff:")).context("/proc/self/status has no CapEff")?;
        u64::from_str_radix(hex.trim(), 16).map(Self).context("CapEff in /proc/self/status is not hexadecimal")
    }

    /// True when `capability` is effective. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON, as it did before 5.8.
    pub(crate) fn has(self, capability: Capability) -> bool {
        let implied = matches!(capability.name, "CAP_BPF" | "CAP_PERFMON") && self.is_admin();
        self.0 >> capability.bit & 1 == 1 || implied
    }

    /// True with CAP_SYS_ADMIN.
    pub(crate) fn is_admin(self) -> bool {
        self.0 >> 21 & 1 == 1
    }

    /// The required capabilities that are not there.
    pub(crate) fn lacking(self) -> Vec<Capability> {
        REQUIRED.iter().copied().filter(|&capability| !self.has(capability)).collect()
    }
}

/// True when kernel lockdown forbids `bpf_probe_read_kernel`; typed reads by the programs go on working.
pub(crate) fn lockdown_is_confidential() -> bool {
    // Absent when the security module is not built in: no lockdown then.
    bounded::text("/sys/kernel/security/lockdown", FIGURES).is_ok_and(|text| text.contains("[confidentiality]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_implies_bpf_but_not_syslog() {
        let admin = Effective(1 << 21);
        assert!(admin.lacking().is_empty());
        assert!(!admin.has(OPTIONAL[0]));
        let nobody = Effective(0);
        assert_eq!(nobody.lacking().len(), 2);
        assert!(Effective(1 << 39 | 1 << 38).lacking().is_empty());
    }
}
