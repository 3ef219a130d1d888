//! The wait status of a process, as `wait(2)` reports it and the kernel keeps it in `signal->group_exit_code`:
//! the exit code in bits 8–15, or the signal in bits 0–6 with bit 7 set when a core was dumped (wait.h).

/// `SIGKILL`, the same number on every architecture.
pub const SIGKILL: u32 = 9;

/// What a wait status says, before any diagnosis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Clean,
    /// A non-zero exit code.
    Error,
    /// Ended by a signal.
    Signal,
    /// Ended by `SIGKILL` while marked as a victim of the kernel's OOM killer.
    Oom,
}

impl Outcome {
    /// Classifies a wait status; `oom_victim` says whether the kernel had marked the process (`signal->oom_mm`).
    #[inline(always)]
    pub const fn of(status: u32, oom_victim: bool) -> Self {
        if status & 0x7f == SIGKILL && oom_victim {
            Self::Oom
        } else if status & 0x7f != 0 {
            Self::Signal
        } else if status & 0xff00 != 0 {
            Self::Error
        } else {
            Self::Clean
        }
    }
}

/// The exit code, when the process ended by itself.
pub const fn exit_code(status: u32) -> Option<u8> {
    if status & 0x7f == 0 { Some((status >> 8) as u8) } else { None }
}

/// The signal that ended the process and whether it left a core.
pub const fn signal(status: u32) -> Option<(u8, bool)> {
    match status & 0x7f {
        0 => None,
        signal => Some((signal as u8, status & 0x80 != 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_read_as_wait_2_defines_them() {
        for (status, oom, outcome, code, sig) in [
            (0x0, false, Outcome::Clean, Some(0), None),
            (0x300, false, Outcome::Error, Some(3), None),
            (0x9, false, Outcome::Signal, None, Some((9, false))),
            (0x9, true, Outcome::Oom, None, Some((9, false))),
            (0x8b, false, Outcome::Signal, None, Some((11, true))),
            // A marked process that ended in another way was not killed by the OOM killer.
            (0x8b, true, Outcome::Signal, None, Some((11, true))),
            (0x100, true, Outcome::Error, Some(1), None),
            (0x0, true, Outcome::Clean, Some(0), None),
        ] {
            assert_eq!(Outcome::of(status, oom), outcome, "{status:#x} oom={oom}");
            assert_eq!(exit_code(status), code, "{status:#x}");
            assert_eq!(signal(status), sig, "{status:#x}");
        }
    }
}
