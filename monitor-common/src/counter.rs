//! Words that the programs keep for each CPU; the first [`SLOTS`] are counters that the agent sums.

use crate::status::Outcome;

/// Process exits with a non-zero exit code.
pub const EXIT_ERROR: u32 = 0;
/// Processes ended by a signal that the kernel's OOM killer did not send.
pub const EXIT_SIGNAL: u32 = 1;
/// Processes ended by the kernel's OOM killer.
pub const EXIT_OOM: u32 = 2;
/// Records of OOM marks or abnormal deaths that the critical ring had no room for.
pub const LOST_CRITICAL: u32 = 3;
/// Records that the bulk ring had no room for.
pub const LOST_BULK: u32 = 4;
/// Routine records of watched services (exec, fork, clean exit, cgroup) dropped to keep room for deaths.
pub const LOST_ROUTINE: u32 = 5;
/// Process exits with wait status 0. The last counter: next to the words that such an exit reads.
pub const EXIT_CLEAN: u32 = 6;
/// Number of counters.
pub const SLOTS: u32 = 7;
/// Cgroups that a CPU remembers as not watched; a power of two.
pub const UNWATCHED: usize = 8;
/// 2⁶⁴ divided by the golden ratio, odd: products of different numbers differ, and those of neighbours lie far apart.
pub const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Who begins an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The agent, one epoch at a time.
    Agent,
    /// The programs, one epoch at a time, as the kernel makes cgroups one at a time.
    Programs,
}

/// Name of an epoch that begins at `now_ns`, CLOCK_BOOTTIME nanoseconds; unique in this boot. The programs combine it with addresses,
/// so successive names must differ in more than a few bits.
#[must_use]
pub const fn epoch(now_ns: u64, author: Author) -> u64 {
    (now_ns << 1 | author as u64).wrapping_mul(SPREAD)
}

/// All words of a CPU: the counters, the latest unwatched cgroup, other unwatched cgroups, the last task handled.
pub const CPU_WORDS: usize = SLOTS as usize + 1 + UNWATCHED + 1;

impl Outcome {
    /// The slot that counts this outcome.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        match self {
            Self::Clean => EXIT_CLEAN,
            Self::Error => EXIT_ERROR,
            Self::Signal => EXIT_SIGNAL,
            Self::Oom => EXIT_OOM,
        }
    }
}
