//! How often a pool's slots are asked for: soon after the first refusal, then more and more seldom. Pure.
//!
//! Waits grow from 5 s to 2 min and vary by half, so that ten thousand hosts that want the same thing at the same moment do
//! not ask at the same moment again. Nobody waits in line: what counts is that somebody asks soon after a slot is free, and
//! the more there are, the sooner that is.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(120);
/// 5 s doubled so often is more than [`LONGEST`].
const MAX_DOUBLINGS: u32 = 5;

/// See the module. One for each pool.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    seed: u64,
    refusals: u32,
    not_before_ns: u64,
}

impl Pace {
    /// Nothing was refused yet. `seed` differs from host to host.
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, refusals: 0, not_before_ns: 0 }
    }

    /// How long to wait still; `None`: etcd may be asked.
    pub(super) fn wait(&self, now_ns: u64) -> Option<Duration> {
        let left = self.not_before_ns.saturating_sub(now_ns);
        (left > 0).then_some(Duration::from_nanos(left))
    }

    /// It was refused, or nobody answered. Returns the wait.
    pub(super) fn refused(&mut self, now_ns: u64) -> Duration {
        let plain = FIRST.saturating_mul(1 << self.refusals.min(MAX_DOUBLINGS)).min(LONGEST);
        self.refusals = self.refusals.saturating_add(1);
        let wait = plain.mul_f64(0.5 + unit(self.seed ^ u64::from(self.refusals).wrapping_mul(GOLDEN)));
        self.not_before_ns = now_ns.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
        wait
    }

    /// It was granted.
    pub(super) fn granted(&mut self) {
        self.refusals = 0;
        self.not_before_ns = 0;
    }
}

/// SplitMix64's increment.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// 0 to 1, the same for the same input: SplitMix64's finalizer, by which every bit reaches the result.
pub(super) fn unit(input: u64) -> f64 {
    let mut mixed = input.wrapping_add(GOLDEN);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests;
