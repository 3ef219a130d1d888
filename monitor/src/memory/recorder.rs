//! The flight recorder: what memory did in the minutes before a death, which nobody can measure afterwards.

use std::{collections::VecDeque, time::Duration};

use crate::{host::clock, incident::Sample};

/// Measurements kept of each service: three minutes at the shortest interval.
const KEPT: usize = 36;
/// Where measurements are rarer, because services are many, a quarter of an hour is enough of them.
const SPAN_NS: u64 = Duration::from_secs(900).as_nanos() as u64;
/// But never fewer than this.
const LEAST: usize = 6;
/// Places that the list grows by.
const PLACES: usize = 6;

/// The last measurements of one service, eight bytes each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder {
    /// The oldest first.
    samples: VecDeque<Packed>,
    /// What the times of samples count from, CLOCK_BOOTTIME nanoseconds.
    base_ns: u64,
    limit: Option<u64>,
}

/// A measurement, to a hundredth of a second and a KiB; 497 days and 4 TiB at most.
#[derive(Clone, Copy, Debug)]
struct Packed {
    at: u32,
    kib: u32,
}

const UNIT_NS: u64 = 10_000_000;
const UNIT_BYTES: u64 = 1024;

impl Recorder {
    /// Adds one: bytes in use at a moment on CLOCK_BOOTTIME, and the least limit on the way up.
    pub(crate) fn add(&mut self, at_ns: u64, bytes: u64, limit: Option<u64>) {
        self.limit = limit;
        if self.samples.is_empty() {
            self.base_ns = at_ns;
        }
        let Ok(at) = u32::try_from(at_ns.saturating_sub(self.base_ns) / UNIT_NS) else {
            // Older than the clock of this recorder can tell from the new one.
            self.samples.clear();
            return self.add(at_ns, bytes, limit);
        };
        let long_ago = at.saturating_sub((SPAN_NS / UNIT_NS) as u32);
        while self.samples.len() >= KEPT
            || self.samples.len() >= LEAST && self.samples.front().is_some_and(|sample| sample.at < long_ago)
        {
            self.samples.pop_front();
        }
        if self.samples.len() == self.samples.capacity() {
            // By itself it would double, and hold twice what it needs.
            self.samples.reserve_exact(PLACES);
        }
        self.samples.push_back(Packed { at, kib: u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX) });
    }

    /// The last measurement, bytes.
    pub(crate) fn last(&self) -> Option<u64> {
        self.samples.back().map(|sample| u64::from(sample.kib) * UNIT_BYTES)
    }

    /// The memory limit, bytes.
    pub(crate) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// All measurements for a record.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let sample = |&Packed { at, kib }: &Packed| Sample {
            at: clock::wall(self.base_ns + u64::from(at) * UNIT_NS),
            bytes: u64::from(kib) * UNIT_BYTES,
        };
        self.samples.iter().map(sample).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    /// One sample each `seconds`, of as many KiB as there were before it.
    fn recorded(seconds: u64) -> Recorder {
        let mut recorder = Recorder::default();
        for number in 0..1000 {
            recorder.add(7 + number * seconds * SECOND_NS, number * UNIT_BYTES, Some(7));
        }
        recorder
    }

    #[test]
    fn the_last_minutes_are_kept_and_no_more() {
        let recorder = recorded(5);
        let samples = recorder.samples();
        assert_eq!((samples.len(), samples[0].bytes), (KEPT, 964 * UNIT_BYTES));
        assert_eq!((recorder.last(), recorder.limit()), (Some(999 * UNIT_BYTES), Some(7)));
        let between = samples[KEPT - 1].at.duration_since(samples[KEPT - 2].at);
        // The wall clock's lead is read for each.
        assert_eq!(between.as_secs_f64().round(), 5.0);
        assert!(recorder.samples.capacity() <= KEPT, "{}", recorder.samples.capacity());
    }

    #[test]
    fn rare_measurements_are_kept_for_a_quarter_of_an_hour_and_some_always() {
        assert_eq!(recorded(100).samples().len(), 10);
        assert_eq!(recorded(3600).samples().len(), LEAST);
    }

    #[test]
    fn after_more_time_than_it_can_tell_it_begins_anew() {
        let mut recorder = recorded(5);
        recorder.add(500 * 86_400 * SECOND_NS, 4096, None);
        assert_eq!((recorder.samples().len(), recorder.last(), recorder.limit()), (1, Some(4096), None));
    }
}
