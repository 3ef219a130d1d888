//! Which member of the cluster is asked first: the one that answered last; those that have just failed come last. Pure.

use std::time::Duration;

/// For so long a member that failed is tried only after all others.
const REST: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Endpoints {
    /// Until when each rests.
    resting_until_ns: Vec<u64>,
    first: usize,
}

impl Endpoints {
    /// `count` members. `seed` differs from host to host, so that not all ask the same one.
    pub(super) fn new(count: usize, seed: u64) -> Self {
        Self { resting_until_ns: vec![0; count], first: (seed % count.max(1) as u64) as usize }
    }

    /// All members, the best one first.
    pub(super) fn order(&self, now_ns: u64) -> Vec<usize> {
        let count = self.resting_until_ns.len();
        let mut order: Vec<_> = (0..count).map(|step| (self.first + step) % count).collect();
        order.sort_by_key(|&member| self.resting_until_ns[member] > now_ns);
        order
    }

    /// It answered.
    pub(super) fn answered(&mut self, member: usize) {
        self.resting_until_ns[member] = 0;
        self.first = member;
    }

    /// It did not, or could not say anything.
    pub(super) fn failed(&mut self, member: usize, now_ns: u64) {
        self.resting_until_ns[member] = now_ns.saturating_add(REST.as_nanos() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_answered_comes_first_and_one_that_failed_rests() {
        let mut endpoints = Endpoints::new(3, 4);
        assert_eq!(endpoints.order(0), [1, 2, 0]);
        endpoints.failed(1, 0);
        assert_eq!(endpoints.order(0), [2, 0, 1], "the last resort");
        endpoints.answered(0);
        assert_eq!(endpoints.order(0), [0, 2, 1]);
        assert_eq!(endpoints.order(11_000_000_000), [0, 1, 2]);
        endpoints.answered(1);
        assert_eq!(endpoints.order(0), [1, 2, 0]);
    }
}
