//! Restarts are budgeted: so many in a sliding window.

use std::{collections::VecDeque, time::Duration};

use crate::config::Budget;

/// What was spent, and when.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    budget: Budget,
    /// Those of an earlier boot are negative.
    spent_ns: VecDeque<i64>,
}

impl Ledger {
    /// A full budget.
    pub(crate) fn new(budget: Budget) -> Self {
        Self { budget, spent_ns: VecDeque::new() }
    }

    /// `None`: one may be spent now. Otherwise the earliest time at which that may be so.
    pub(crate) fn blocked_until(&mut self, now_ns: u64) -> Option<u64> {
        let window = self.window_ns();
        while self.spent_ns.front().is_some_and(|&spent| freed(spent, window).is_none_or(|at| at <= now_ns)) {
            self.spent_ns.pop_front();
        }
        if self.budget.count == 0 {
            return Some(now_ns.saturating_add(window));
        }
        let oldest = *self.spent_ns.front()?;
        (self.spent_ns.len() >= self.budget.count as usize).then(|| freed(oldest, window)).flatten()
    }

    /// When the restarts of the window were spent, the oldest first.
    pub(crate) fn spent(&self) -> &VecDeque<i64> {
        &self.spent_ns
    }

    /// Takes over what an earlier agent spent.
    pub(crate) fn restore(&mut self, spent_ns: VecDeque<i64>) {
        self.spent_ns = spent_ns;
    }

    /// Spends one.
    pub(crate) fn spend(&mut self, now_ns: u64) {
        self.spent_ns.push_back(moment(now_ns));
    }

    fn window_ns(&self) -> u64 {
        nanoseconds(self.budget.window)
    }
}

/// The restarts that all services of a host share.
///
/// Flapping services must not spend the restarts of the others: half of the budget is kept for services that were
/// restarted less than twice within its window.
#[derive(Clone, Debug)]
pub(crate) struct HostLedger {
    budget: Budget,
    /// When each restart was spent, and by which service. Times of an earlier boot are negative.
    spent: VecDeque<(i64, u64)>,
}

/// A service flaps from this many restarts within the window on.
const FLAPS: usize = 2;
/// A smaller budget is not halved.
const SHARED_FROM: usize = 4;

impl HostLedger {
    /// A full budget.
    pub(crate) fn new(budget: Budget) -> Self {
        Self { budget, spent: VecDeque::new() }
    }

    /// `None` when this service may spend a restart now; otherwise the earliest time at which it may.
    pub(crate) fn blocked_until(&mut self, service: u64, now_ns: u64) -> Option<u64> {
        let window = nanoseconds(self.budget.window);
        while self.spent.front().is_some_and(|&(spent, _)| freed(spent, window).is_none_or(|at| at <= now_ns)) {
            self.spent.pop_front();
        }
        let count = self.budget.count as usize;
        if count == 0 {
            return Some(now_ns.saturating_add(window));
        }
        let flaps = self.spent.iter().filter(|&&(_, spender)| spender == service).count() >= FLAPS;
        let most = if flaps && count >= SHARED_FROM { count - count / 2 } else { count };
        let over = (self.spent.len() + 1).checked_sub(most).filter(|&over| over > 0)?;
        self.spent.get(over - 1).and_then(|&(spent, _)| freed(spent, window))
    }

    /// Counts restarts that a service spent earlier.
    pub(crate) fn borrow(&mut self, service: u64, spent_ns: &VecDeque<i64>) {
        self.spent.extend(spent_ns.iter().map(|&spent| (spent, service)));
        self.spent.make_contiguous().sort_unstable();
    }

    /// Spends one.
    pub(crate) fn spend(&mut self, service: u64, now_ns: u64) {
        self.spent.push_back((moment(now_ns), service));
    }
}

/// When a restart spent at `spent_ns` may be spent again; `None` when that was before this boot.
fn freed(spent_ns: i64, window_ns: u64) -> Option<u64> {
    match u64::try_from(spent_ns) {
        Ok(spent_ns) => Some(spent_ns.saturating_add(window_ns)),
        Err(_) => window_ns.checked_sub(spent_ns.unsigned_abs()),
    }
}

/// A time or a span as a signed number, since times of earlier boots are negative; the clock overflows it after 292
/// years.
pub(super) fn moment(at_ns: u64) -> i64 {
    i64::try_from(at_ns).unwrap_or(i64::MAX)
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
    fn services_that_flap_leave_half_of_the_host_s_budget_to_the_others() {
        let mut host = HostLedger::new(Budget { count: 10, window: Duration::from_nanos(100) });
        let mut spent = |service, now| {
            let free = host.blocked_until(service, now).is_none();
            if free {
                host.spend(service, now);
            }
            free
        };
        let flapping = (0..20).filter(|&now| spent(1 + now % 2, now)).count();
        assert_eq!(flapping, 5);
        let others = (100..120).filter(|&service| spent(service, 30)).count();
        assert_eq!(others, 5);
        assert_eq!(host.blocked_until(500, 40), Some(100), "when the first was spent, and the window");
        assert_eq!(host.blocked_until(1, 40), Some(130), "when no more than four of the others count");
        assert_eq!(host.blocked_until(1, 130), None);
    }

    #[test]
    fn services_that_were_restarted_once_may_be_once_more() {
        let mut host = HostLedger::new(Budget { count: 10, window: Duration::from_nanos(100) });
        for (now, service) in [1, 2, 3, 4, 5, 1, 2, 3, 4, 5].into_iter().enumerate() {
            assert_eq!(host.blocked_until(service, now as u64), None, "{now}");
            host.spend(service, now as u64);
        }
        assert_eq!(host.blocked_until(6, 10), Some(100));
    }

    #[test]
    fn a_small_budget_is_whole_for_each() {
        let mut host = HostLedger::new(Budget { count: 3, window: Duration::from_nanos(100) });
        for now in 0..3 {
            assert_eq!(host.blocked_until(1, now), None);
            host.spend(1, now);
        }
        assert_eq!(host.blocked_until(1, 5), Some(100));
        let mut nothing = HostLedger::new(Budget { count: 0, window: Duration::from_nanos(100) });
        assert_eq!(nothing.blocked_until(1, 5), Some(105));
    }

    #[test]
    fn what_was_spent_before_this_boot_blocks_for_the_rest_of_its_window_and_no_longer() {
        let mut ledger = Ledger::new(Budget { count: 2, window: Duration::from_nanos(100) });
        ledger.restore([i64::MIN, -100, -99, -30].into());
        assert_eq!(ledger.blocked_until(0), Some(1), "two of four are long ago");
        assert_eq!(ledger.blocked_until(1), None);
        ledger.spend(5);
        assert_eq!(ledger.blocked_until(69), Some(70));
        assert_eq!(ledger.blocked_until(70), None);
    }

    #[test]
    fn a_budget_of_nothing_is_always_spent() {
        let mut ledger = Ledger::new(Budget { count: 0, window: Duration::from_nanos(100) });
        assert_eq!(ledger.blocked_until(5), Some(105));
    }
}
