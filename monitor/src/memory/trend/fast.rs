//! The fast lane: exhaustion within minutes, which an hourly verdict would sleep through.

use serde::{Deserialize, Serialize};

use super::stats::{self, Dot};

/// Seconds of the slope.
pub(super) const SPAN: f64 = 600.0;
/// Samples in that time.
const SAMPLES: usize = 11;
/// Fewer say nothing.
const LEAST: usize = 5;
/// Seconds to the limit from which on it is a page.
pub(super) const SOON: f64 = 900.0;
/// Share of the limit below which there is time: without and with pressure on memory.
const HIGH: f32 = 0.8;
const PRESSED: f32 = 0.6;
/// Share of time in which everything waits for memory, from which on there is pressure.
const PRESSURE: f64 = 0.1;
/// Share of pairs that rise.
const RISING: f32 = 0.8;
/// Share of the slope that each half must have: a step is no way to anywhere.
const STEADY: f32 = 0.4;
/// Samples in a row that must say so.
const HELD: u8 = 3;

/// The last minutes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Fast {
    /// Seconds before the last sample are told from the difference to it, so a float will do.
    base: f64,
    #[serde(deserialize_with = "super::bounded::<_, _, SAMPLES>")]
    samples: Vec<(f32, f32)>,
    held: u8,
    /// Seconds to the limit by the last sample.
    eta: Option<f32>,
}

impl Fast {
    /// Adds a sample. `before`: the most bytes seen in this incarnation before these minutes. What was there before and did
    /// no harm, such as the next tooth of a collector's sawtooth, is no way to the limit.
    pub(super) fn add(
        &mut self,
        time: f64,
        bytes: f32,
        limit: Option<f32>,
        pressure: Option<f64>,
        before: impl Fn() -> f32,
    ) {
        if self.samples.is_empty() || time - self.base > 1e6 {
            self.base = time;
            self.samples.clear();
        }
        let at = (time - self.base) as f32;
        self.samples.retain(|(then, _)| f64::from(at - then) <= SPAN);
        if self.samples.len() >= SAMPLES {
            self.samples.remove(0);
        }
        if self.samples.capacity() == 0 {
            self.samples.reserve_exact(SAMPLES);
        }
        self.samples.push((at, bytes));
        self.eta = limit.and_then(|limit| self.way_to(limit, pressure, before));
        self.held = if self.eta.is_some() { self.held.saturating_add(1) } else { 0 };
    }

    fn way_to(&self, limit: f32, pressure: Option<f64>, before: impl Fn() -> f32) -> Option<f32> {
        let &(_, last) = self.samples.last()?;
        let high = if pressure.is_some_and(|share| share >= PRESSURE) { PRESSED } else { HIGH };
        if self.samples.len() < LEAST || last < high * limit || last <= before() {
            return None;
        }
        let dots: Vec<Dot> = self.samples.iter().map(|&(x, y)| Dot { x, y, load: 0.0, work: 0.0 }).collect();
        let pairs = (dots.len() * (dots.len() - 1) / 2) as f32;
        let (rising, _) = stats::rising(&dots);
        // Of the pairs that rise less those that fall: 0.6 where 80 of 100 rise.
        if rising < (2.0 * RISING - 1.0) * pairs {
            return None;
        }
        let mut scratch = Vec::new();
        let slope = stats::slope(&dots, &mut scratch);
        let (first, second) = dots.split_at(dots.len() / 2);
        if [first, second].iter().any(|half| stats::slope(half, &mut scratch) < STEADY * slope) {
            return None;
        }
        let eta = (limit - last).max(0.0) / slope;
        (slope > 0.0 && f64::from(eta) <= SOON).then_some(eta)
    }

    /// Seconds to the limit, when they are few and that has been so for a few samples.
    pub(super) fn eta(&self) -> Option<f64> {
        self.eta.filter(|_| self.held >= HELD).map(f64::from)
    }

    /// Bytes that it holds beside its own size.
    pub(super) fn heap(&self) -> usize {
        self.samples.capacity() * size_of::<(f32, f32)>()
    }
}
