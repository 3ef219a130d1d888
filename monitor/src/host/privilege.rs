//! What this process may do, and what the kernel allows at all.

use anyhow::{Context as _, Result};

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

/// The effective capabilities of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effective(u64);

impl Effective {
    /// Reads `/proc/self/status`.
    pub(crate) fn of_self() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
        let hex =
            text.lines().find_map(|line| line.strip_prefix("CapEff:")).context("/proc/self/status has no CapEff")?;
        u64::from_str_radix(hex.trim(), 16).map(Self).context("CapEff in /proc/self/status is not hexadecimal")
    }

    /// True when `capability` is effective. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON, as it did before 5.8.
    pub(crate) fn has(self, capability: Capability) -> bool {
        const SYS_ADMIN: u64 = 1 << 21;
        let implied = matches!(capability.name, "CAP_BPF" | "CAP_PERFMON") && self.0 & SYS_ADMIN != 0;
        self.0 >> capability.bit & 1 == 1 || implied
    }

    /// The required capabilities that are not there.
    pub(crate) fn lacking(self) -> Vec<Capability> {
        REQUIRED.iter().copied().filter(|&capability| !self.has(capability)).collect()
    }
}

/// True when kernel lockdown forbids `bpf_probe_read_kernel`; typed reads by the programs go on working.
pub(crate) fn lockdown_is_confidential() -> bool {
    // Absent when the security module is not built in: no lockdown then.
    std::fs::read_to_string("/sys/kernel/security/lockdown").is_ok_and(|text| text.contains("[confidentiality]"))
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
