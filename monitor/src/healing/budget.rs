//! Restarts are budgeted: so many in a sliding window.

use std::{collections::VecDeque, time::Duration};

use crate::config::Budget;

/// What was spent, and when.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    budget: Budget,
    spent_ns: VecDeque<u64>,
}

impl Ledger {
    /// A full budget.
    pub(crate) fn new(budget: Budget) -> Self {
        Self { budget, spent_ns: VecDeque::new() }
    }

    /// `None`: one may be spent now. Otherwise the earliest time at which that may be so.
    pub(crate) fn blocked_until(&mut self, now_ns: u64) -> Option<u64> {
        let window = self.window_ns();
        while self.spent_ns.front().is_some_and(|&spent| spent.saturating_add(window) <= now_ns) {
            self.spent_ns.pop_front();
        }
        if self.budget.count == 0 {
            return Some(now_ns.saturating_add(window));
        }
        let oldest = *self.spent_ns.front()?;
        (self.spent_ns.len() >= self.budget.count as usize).then(|| oldest.saturating_add(window))
    }

    /// When the restarts of the window were spent, the oldest first.
    pub(crate) fn spent(&self) -> &VecDeque<u64> {
        &self.spent_ns
    }

    /// Takes over what an earlier agent spent.
    pub(crate) fn restore(&mut self, spent_ns: VecDeque<u64>) {
        self.spent_ns = spent_ns;
    }

    /// Counts what one of those that share this budget has spent earlier.
    pub(crate) fn borrow(&mut self, spent_ns: &VecDeque<u64>) {
        self.spent_ns.extend(spent_ns);
        self.spent_ns.make_contiguous().sort_unstable();
    }

    /// Spends one.
    pub(crate) fn spend(&mut self, now_ns: u64) {
        self.spent_ns.push_back(now_ns);
    }

    fn window_ns(&self) -> u64 {
        nanoseconds(self.budget.window)
    }
}

/// A span as the clock counts it; the longest there is for one that is longer.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_window_slides() {
        let mut ledger = Ledger::new(Budget { count: 2, window: Duration::from_nanos(100) });
        assert_eq!(ledger.blocked_until(0), None);
        ledger.spend(0);
        ledger.spend(30);
        assert_eq!(ledger.blocked_until(50), Some(100));
        assert_eq!(ledger.blocked_until(100), None);
        ledger.spend(100);
        assert_eq!(ledger.blocked_until(101), Some(130));
    }

    #[test]
    fn a_budget_of_nothing_is_always_spent() {
        let mut ledger = Ledger::new(Budget { count: 0, window: Duration::from_nanos(100) });
        assert_eq!(ledger.blocked_until(5), Some(105));
    }
}
