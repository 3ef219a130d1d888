//! How long a turn of the steward takes, from waking to waiting: nothing else is handled meanwhile.

use std::time::Duration;

/// From here on a turn is slow: 250 ms. A verdict may wait 100 ms for evidence, and the service manager's watchdog seconds.
pub(super) const SLOW: Duration = Duration::from_millis(250);
/// Between two lines of the log about it.
const QUIET_NS: u64 = 10_000_000_000;

/// Tells slow turns, not too often.
#[derive(Debug, Default)]
pub(super) struct Turns {
    said_ns: Option<u64>,
    unsaid: u64,
}

impl Turns {
    /// A turn has taken this long. How many slow ones were not told since the last that was, when this one is to be told.
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
