//! Reports slow turns of the steward. A turn lasts from waking to waiting; nothing else is handled meanwhile.

use std::time::Duration;

/// A turn of 250 ms or more is slow: a verdict waits up to 500 ms for answers, the service manager's watchdog seconds.
pub(super) const SLOW: Duration = Duration::from_millis(250);
/// Least time between two log lines about slow turns, nanoseconds: 10 s.
const QUIET_NS: u64 = 10_000_000_000;

/// Limits how often slow turns are logged.
#[derive(Debug, Default)]
pub(super) struct Turns {
    said_ns: Option<u64>,
    unsaid: u64,
}

impl Turns {
    /// A turn has taken `time`. `Some` when it is to be logged: the number of slow turns left out since the last log
    /// line.
    pub(super) fn took(&mut self, time: Duration, now_ns: u64) -> Option<u64> {
        if time < SLOW {
            return None;
        }
        if self.said_ns.is_some_and(|said| now_ns.saturating_sub(said) < QUIET_NS) {
            self.unsaid += 1;
            return None;
        }
        self.said_ns = Some(now_ns);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_turns_are_told_now_and_then_with_how_many_were_not() {
        let (mut turns, fast) = (Turns::default(), SLOW - Duration::from_nanos(1));
        assert_eq!(turns.took(fast, 0), None);
        assert_eq!(turns.took(SLOW, 1), Some(0));
        for at in 2..9 {
            assert_eq!(turns.took(SLOW, at), None);
        }
        assert_eq!(turns.took(fast, 2 * QUIET_NS), None);
        assert_eq!(turns.took(SLOW, 2 * QUIET_NS), Some(7));
        assert_eq!(turns.took(SLOW, 3 * QUIET_NS), Some(0));
    }
}
