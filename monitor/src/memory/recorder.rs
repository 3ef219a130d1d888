//! The flight recorder: what memory did in the minutes before a death, which nobody can measure afterwards.

use std::collections::VecDeque;

use crate::{host::clock, incident::Sample};

/// Measurements kept of each service: three minutes at the shortest interval.
const KEPT: usize = 36;
/// The last measurements of one service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder {
    /// Time on CLOCK_BOOTTIME and bytes, the oldest first.
    samples: VecDeque<(u64, u64)>,
    limit: Option<u64>,
}

impl Recorder {
    /// Adds one: bytes in use at a moment on CLOCK_BOOTTIME, and the least limit on the way up.
    pub(crate) fn add(&mut self, at_ns: u64, bytes: u64, limit: Option<u64>) {
        if self.samples.len() >= KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back((at_ns, bytes));
        self.limit = limit;
    }

    /// The last measurement, bytes.
    pub(crate) fn last(&self) -> Option<u64> {
        self.samples.back().map(|&(_, bytes)| bytes)
    }

    /// The memory limit, bytes.
    pub(crate) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// All measurements for a record.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.samples.iter().map(|&(at_ns, bytes)| Sample { at: clock::wall(at_ns), bytes }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minutes_are_kept_and_no_more() {
        let mut recorder = Recorder::default();
        for second in 0..1000 {
            recorder.add(second, second * 10, Some(7));
        }
        let samples = recorder.samples();
        assert_eq!((samples.len(), samples[0].bytes, recorder.last()), (KEPT, 9640, Some(9990)));
        assert_eq!(recorder.limit(), Some(7));
    }
}
