//! How long to watch, how many calls to sample, how long to rest: so that the service gives no more than a set share of its
//! processor time. Pure.

use std::time::Duration;

/// Share of the service's processor time that a trace may take. Three hundredths are promised; the rest is for what an estimate
/// misses.
pub(crate) const SHARE_MAX: f64 = 0.02;
/// A service that mostly sleeps gives as much as one that uses a quarter of a processor, or little would ever be seen of it: at most
/// half a hundredth of one processor.
pub(super) const PROCESSOR_MIN: f64 = 0.25;

/// Calls that one watch should see: long enough that what lives shortly is released within it.
const CALLS: f64 = 4000.0;
/// Samples that one watch should take, and how many may come in a second: the ring has room for 126, and is looked into every other
/// millisecond.
const SAMPLES: f64 = 800.0;
const SAMPLES_PER_SECOND: f64 = 25_000.0;
/// The least share of calls to sample.
const SHARE_MIN: f64 = 1e-4;
/// The shortest and the longest watch.
const WATCH: (Duration, Duration) = (Duration::from_millis(2), Duration::from_secs(2));
/// The shortest and the longest rest.
const REST: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(60));

/// What hits and watches take from the service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Price {
    /// Seconds for a hit of a probe.
    pub(super) hit: f64,
    /// Seconds for a sample, on top of that.
    pub(super) sample: f64,
    /// Seconds for beginning and ending a watch.
    pub(super) watch: f64,
    /// Seconds in which probes are still hit when a watch has ended: where they go one by one, they take longer than the watch did.
    pub(super) linger: f64,
}

/// What one watch has met.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Met {
    /// Share of calls that was to be sampled at most.
    pub(super) share: f64,
    /// How long it was.
    pub(super) seconds: f64,
    /// Calls for memory.
    pub(super) calls: u64,
    /// Hits of probes.
    pub(super) hits: u64,
    /// Samples.
    pub(super) samples: u64,
}

/// The next watch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    /// Rest before it.
    pub(super) rest: Duration,
    /// How long it is.
    pub(super) watch: Duration,
    /// Share of calls to sample, 0 to 1.
    pub(super) share: f64,
    /// Whether that costs half as much again as it may, for no longer rest is taken.
    pub(super) too_dear: bool,
}

impl Price {
    /// Seconds that it took from the service.
    pub(super) fn of(&self, met: &Met) -> f64 {
        met.hits as f64 * self.hit + met.samples as f64 * self.sample + self.watch
    }
}

/// The first watch of a process of which nothing is known: a short look.
pub(super) fn first() -> Plan {
    Plan { rest: Duration::ZERO, watch: WATCH.0, share: 0.1, too_dear: false }
}

/// The next watch, after one that has met this. `processor`: seconds of processor time that the process uses in a second.
pub(super) fn next(met: &Met, processor: f64, price: &Price) -> Plan {
    let seconds = met.seconds.max(1e-6);
    let rate = met.calls as f64 / seconds;
    let watch = if rate > 0.0 { CALLS / rate } else { f64::INFINITY };
    // A watch that saw little tells little of how much there would be in a long one.
    // Nor should it be much shorter than what it takes to end it.
    let watch = watch.min(seconds * 8.0).max(price.linger).clamp(WATCH.0.as_secs_f64(), WATCH.1.as_secs_f64());
    // Fewer were sampled than the share allows, of kinds whose memory comes back: so it follows the samples, not the calls.
    let samples = met.samples as f64 / seconds * watch;
    let wanted = SAMPLES.min(SAMPLES_PER_SECOND * watch);
    let share = (met.share * wanted / samples.max(1.0)).clamp(SHARE_MIN, 1.0);
    let hits = met.hits as f64 / (seconds + price.linger) * (watch + price.linger);
    let cost = hits * price.hit + samples * price.sample + price.watch;
    let wanted = cost / (SHARE_MAX * processor.max(PROCESSOR_MIN)) - watch;
    let rest = wanted.clamp(REST.0.as_secs_f64(), REST.1.as_secs_f64());
    Plan {
        rest: Duration::from_secs_f64(rest),
        watch: Duration::from_secs_f64(watch),
        share,
        too_dear: wanted > rest * 1.5,
    }
}

impl Plan {
    /// Rests longer where more was taken so far than may be: the first watches are planned without knowing. `taken`: seconds, of a process
    /// that has been traced for `traced` seconds.
    pub(super) fn owing(self, taken: f64, traced: f64, processor: f64) -> Self {
        let owed = taken / (SHARE_MAX * processor.max(PROCESSOR_MIN)) - traced;
        Self { rest: self.rest.max(Duration::from_secs_f64(owed.clamp(0.0, REST.1.as_secs_f64()))), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Price = Price { hit: 2e-6, sample: 4e-6, watch: 2e-4, linger: 0.0 };

    /// What a process that calls so often meets, when it is planned for again and again; returns the share of its time taken,
    /// and the share of time watched.
    fn settle(calls_per_second: f64, processor: f64) -> (f64, f64) {
        let (mut plan, mut taken, mut time, mut watched) = (first(), 0.0, 0.0, 0.0);
        for round in 0..200 {
            let seconds = plan.watch.as_secs_f64();
            let calls = (calls_per_second * seconds) as u64;
            let met =
                Met { share: plan.share, seconds, calls, hits: calls * 3, samples: (calls as f64 * plan.share) as u64 };
            plan = next(&met, processor, &PRICE);
            if round > 10 {
                taken += PRICE.of(&met);
                time += seconds + plan.rest.as_secs_f64();
                watched += seconds;
            }
        }
        (taken / (time * processor), watched / time)
    }

    #[test]
    fn a_service_never_gives_more_than_its_share() {
        for calls in [10.0, 1e3, 2e4, 1e5, 1e6, 1e7] {
            for processor in [0.05, 0.5, 1.0, 8.0].into_iter().filter(|processor| calls * 1e-7 <= *processor) {
                let share = settle(calls, processor).0 * processor / f64::max(processor, PROCESSOR_MIN);
                assert!(share <= SHARE_MAX * 1.1, "{share} at {calls} calls a second on {processor} processors");
            }
        }
    }

    #[test]
    fn what_was_taken_too_much_is_rested_for() {
        let plan = Plan { rest: Duration::from_secs(2), ..first() };
        assert_eq!(plan.owing(0.02, 10.0, 1.0), plan);
        assert_eq!(plan.owing(0.3, 10.0, 1.0).rest, Duration::from_secs(5));
        assert_eq!(plan.owing(1e9, 10.0, 1.0).rest, REST.1);
    }

    #[test]
    fn what_no_rest_makes_up_for_is_too_dear() {
        let met = |calls| Met { share: 0.1, seconds: 0.01, calls, hits: calls * 3, samples: 100 };
        let slow = Price { hit: 1e-4, ..PRICE };
        assert!(!next(&met(10_000), 1.0, &PRICE).too_dear);
        assert!(next(&met(10_000), 0.1, &slow).too_dear);
    }

    #[test]
    fn a_quiet_allocator_is_watched_most_of_the_time() {
        assert!(settle(500.0, 0.5).1 > 0.9);
        assert!(settle(1e6, 1.0).1 < 0.02);
    }

    #[test]
    fn an_allocator_that_is_not_called_is_looked_at_longer_each_time() {
        let silent = Met { share: 0.1, seconds: 0.002, calls: 0, hits: 0, samples: 0 };
        let plan = next(&silent, 0.0, &PRICE);
        assert_eq!((plan.watch, plan.share), (Duration::from_millis(16), 1.0));
    }
}
