//! What the programs keep for each CPU: words, of which the first [`SLOTS`] are counters that the agent sums.

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
/// Routine records of watched services (exec, fork, clean exit, cgroup) that stood back to keep room for deaths.
pub const LOST_ROUTINE: u32 = 5;
/// Process exits with wait status 0. The last one: what else such an exit asks for lies behind it.
pub const EXIT_CLEAN: u32 = 6;
/// Number of counters.
pub const SLOTS: u32 = 7;
/// Cgroups that a CPU remembers as not watched; a power of two.
pub const UNWATCHED: usize = 8;
/// 2⁶⁴ over the golden ratio, and odd: different numbers times this are different, and those of neighbours lie far apart.
pub const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Who begins an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The agent, one at a time.
    Agent,
    /// The programs, likewise: the kernel makes cgroups one at a time.
    Programs,
}

/// The name of an epoch that begins now, CLOCK_BOOTTIME nanoseconds: no other of this boot has it. It is combined with addresses, so
/// those of epochs that follow each other must differ in more than a few bits.
#[must_use]
pub const fn epoch(now_ns: u64, author: Author) -> u64 {
    (now_ns << 1 | author as u64).wrapping_mul(SPREAD)
}

/// All words of a CPU: the counters, the cgroup that was asked for last, the other cgroups, the task that was handled last.
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
