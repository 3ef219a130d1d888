//! Limits how long a machine may run: while it makes progress, up to a deadline.
//!
//! Machines may be emulated, so a minute of work on a quiet host takes five on a busy one. A short deadline for the
//! whole run would stop a machine whose tests all pass. So the time since its last line of output counts.

use std::{fmt, time::Duration};

/// Time limits of a machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Longest boot, and longest time between two lines of output.
    pub(crate) silence: Duration,
    /// Deadline of the whole run, also for a machine that never stops printing.
    pub(crate) whole: Duration,
}

/// Five minutes: no test is silent for more than one and a half on a quiet host.
pub(crate) const SILENCE: Duration = Duration::from_secs(300);
/// An hour for each test program; the longest takes ten minutes on a busy build server.
pub(crate) const WHOLE: Duration = Duration::from_secs(3600);

impl Patience {
    /// Limits for `count` test programs, one after the other.
    pub(crate) fn programs(count: usize) -> Self {
        Self { silence: SILENCE, whole: WHOLE * u32::try_from(count.max(1)).unwrap_or(u32::MAX) }
    }
}

/// Why a machine is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The command has not started.
    Boot(Duration),
    /// No line came for this long.
    Silent(Duration),
    /// It did not finish in this time.
    Whole(Duration),
}

/// How far one machine is. Times are from its start.
#[derive(Debug)]
pub(super) struct Progress {
    patience: Patience,
    begun: bool,
    /// When the last line came.
    last: Duration,
}

impl Progress {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, begun: false, last: Duration::ZERO }
    }

    /// The command has begun, or a line of its output has come.
    pub(super) fn made(&mut self, at: Duration) {
        (self.begun, self.last) = (true, at);
    }

    /// The time left until it is stopped, if no further line comes.
    pub(super) fn left(&self, at: Duration) -> Result<Duration, Overdue> {
        let Patience { silence, whole } = self.patience;
        let (until, overdue) = match (self.last + silence, self.begun) {
            (until, _) if until >= whole => (whole, Overdue::Whole(whole)),
            (until, true) => (until, Overdue::Silent(silence)),
            (until, false) => (until, Overdue::Boot(silence)),
        };
        until.checked_sub(at).filter(|left| !left.is_zero()).ok_or(overdue)
    }
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boot(time) => write!(f, "ended: it had not finished booting after {} s", time.as_secs()),
            Self::Silent(time) => {
                write!(f, "ended: the command was still running and had printed nothing for {} s", time.as_secs())
            }
            Self::Whole(time) => write!(f, "ended by its deadline after {} s", time.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn progress() -> Progress {
        Progress::new(Patience { silence: seconds(100), whole: seconds(1000) })
    }

    #[test]
    fn who_says_something_goes_on_until_the_deadline_for_all() {
        let mut machine = progress();
        machine.made(seconds(20));
        for at in (90..=900).step_by(90) {
            assert!(machine.left(seconds(at)).is_ok(), "{at}");
            machine.made(seconds(at));
        }
        machine.made(seconds(990));
        assert_eq!(machine.left(seconds(995)), Ok(seconds(5)));
        assert_eq!(machine.left(seconds(1000)), Err(Overdue::Whole(seconds(1000))));
    }

    #[test]
    fn who_hangs_is_ended_by_the_silence_and_what_it_was_at_is_said() {
        let mut machine = progress();
        assert_eq!(machine.left(seconds(99)), Ok(seconds(1)));
        assert_eq!(machine.left(seconds(100)), Err(Overdue::Boot(seconds(100))));
        machine.made(seconds(50));
        assert_eq!(machine.left(seconds(149)), Ok(seconds(1)));
        assert_eq!(machine.left(seconds(151)), Err(Overdue::Silent(seconds(100))));
        assert_eq!(
            Overdue::Silent(seconds(100)).to_string(),
            "ended: the command was still running and had printed nothing for 100 s"
        );
    }

    #[test]
    fn more_programs_have_more_time_and_no_longer_silence() {
        assert_eq!(Patience::programs(3).whole, 3 * WHOLE);
        assert_eq!(Patience::programs(3).silence, SILENCE);
        assert_eq!(Patience::programs(0).whole, WHOLE);
    }
}
