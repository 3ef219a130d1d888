//! How much of a service's memory follows its load.

use serde::{Deserialize, Serialize};

use super::run::Hour;

/// Hours that count: two weeks, so that weekdays and week-ends are both in it.
const HOURS: f32 = 336.0;
/// Hours that must have been seen.
const LEAST: f32 = 24.0;
/// Standard errors above nothing.
const SURE: f32 = 4.0;

/// Changes from hour to hour of memory (y, bytes) and load (x, cores), as sums that fade.
///
/// Changes, not levels: levels would take a warm-up that runs beside a rising load for the load's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Load {
    n: f32,
    x: f32,
    y: f32,
    xx: f32,
    xy: f32,
    yy: f32,
}

impl Load {
    /// Adds the change between two hours in a row.
    pub(super) fn add(&mut self, before: Hour, after: Hour) {
        if before.cpu < 0.0 || after.cpu < 0.0 {
            return;
        }
        // MiB, so that squares fit.
        let (x, y) = (after.cpu - before.cpu, (after.floor - before.floor) / 1_048_576.0);
        let keep = 1.0 - 1.0 / HOURS;
        self.n = self.n * keep + 1.0;
        self.x = self.x * keep + x;
        self.y = self.y * keep + y;
        self.xx = self.xx * keep + x * x;
        self.xy = self.xy * keep + x * y;
        self.yy = self.yy * keep + y * y;
    }

    /// Bytes for each core in use; 0 unless that is certain.
    pub(super) fn bytes_per_core(&self) -> f32 {
        if self.n < LEAST {
            return 0.0;
        }
        let xx = self.xx - self.x * self.x / self.n;
        let xy = self.xy - self.x * self.y / self.n;
        let yy = self.yy - self.y * self.y / self.n;
        if xx <= 0.0 || xy <= 0.0 {
            return 0.0;
        }
        let gain = xy / xx;
        let error = ((yy - gain * xy).max(0.0) / (self.n - 2.0) / xx).sqrt();
        if gain > SURE * error { gain * 1_048_576.0 } else { 0.0 }
    }
}
