//! Past incarnations in few bytes each; what no longer fits is merged with its like.

use serde::{Deserialize, Serialize};

use super::{
    stats,
    summary::{POINTS, Scratch, Summary},
};

/// Incarnations that one entry may stand for. More would take too long to forget.
const TOGETHER: u16 = 8;
/// Entries may be merged when their uptimes differ by no more than this share.
const ALIKE: f32 = 0.25;

/// A past incarnation, or several that were alike.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Past {
    /// 0 where it is not known, or not one.
    pub(super) build: u16,
    count: u16,
    from: f32,
    pub(super) uptime: f32,
    s: i16,
    s_late: i16,
    v: f32,
    v_late: f32,
    noise: f32,
    amplitude: f32,
    /// The highest point of the curve; the points are shares of it.
    height: f32,
    curve: [i16; POINTS],
    /// The same of the load.
    busiest: f32,
    loads: [u8; POINTS],
}

impl Past {
    /// Packs a summary of an incarnation that ended at `uptime`.
    pub(super) fn new(summary: &Summary, uptime: f32) -> Self {
        let height = most(&summary.curve);
        let busiest = most(&summary.loads);
        Self {
            build: summary.build,
            count: summary.count as u16,
            from: summary.from,
            uptime,
            s: summary.s as i16,
            s_late: summary.s_late as i16,
            v: summary.v,
            v_late: summary.v_late,
            noise: summary.noise,
            amplitude: summary.amplitude,
            height,
            curve: summary.curve.map(|y| if y.is_nan() { i16::MIN } else { (y / height * f32::from(i16::MAX)) as i16 }),
            busiest,
            loads: summary.loads.map(|load| (load / busiest * f32::from(u8::MAX)).round() as u8),
        }
    }

    /// The summary again. Slopes are those of the curve.
    pub(super) fn unpack(&self, scratch: &mut Scratch) -> Summary {
        let point = |share: i16| match share {
            i16::MIN => f32::NAN,
            share => f32::from(share) / f32::from(i16::MAX) * self.height,
        };
        let Self { build, count, from, uptime, s, s_late, v, v_late, noise, amplitude, busiest, .. } = *self;
        let mut summary = Summary {
            build,
            from,
            uptime,
            slope: 0.0,
            early: 0.0,
            late: 0.0,
            s: f32::from(s),
            v,
            s_late: f32::from(s_late),
            v_late,
            floor: 0.0,
            noise,
            amplitude,
            curve: self.curve.map(point),
            loads: self.loads.map(|share| f32::from(share) / f32::from(u8::MAX) * busiest),
            count: f32::from(count),
            inflation: 1.0,
        };
        let Scratch { dots, slopes, .. } = scratch;
        dots.clear();
        dots.extend(summary.dots());
        let half = dots.len() / 2;
        summary.slope = stats::slope(dots, slopes);
        summary.early = stats::slope(&dots[..half], slopes);
        summary.late = stats::slope(&dots[half..], slopes);
        summary
    }

    /// Whether both ran over the same uptimes.
    fn like(&self, other: &Self) -> bool {
        let holes = |past: &Self| past.curve.map(|share| share == i16::MIN);
        (self.uptime - other.uptime).abs() <= ALIKE * self.uptime.max(other.uptime) && holes(self) == holes(other)
    }

    /// Both as one. The newer one counts for what it is, the older for no more than leaves room.
    fn merged(&self, newer: &Self, scratch: &mut Scratch) -> Self {
        let (one, other) = (self.unpack(scratch), newer.unpack(scratch));
        let kept = one.count.min(f32::from(TOGETHER) - other.count).max(1.0);
        let share = other.count / (kept + other.count);
        let mean = |a: f32, b: f32| a + (b - a) * share;
        let fade = kept / one.count;
        let each = |a: [f32; POINTS], b: [f32; POINTS]| std::array::from_fn(|index| mean(a[index], b[index]));
        let summary = Summary {
            build: if one.build == other.build { one.build } else { 0 },
            from: mean(one.from, other.from),
            s: one.s * fade + other.s,
            v: one.v * fade + other.v,
            s_late: one.s_late * fade + other.s_late,
            v_late: one.v_late * fade + other.v_late,
            noise: mean(one.noise, other.noise),
            amplitude: one.amplitude.max(other.amplitude),
            curve: each(one.curve, other.curve),
            loads: each(one.loads, other.loads),
            count: kept + other.count,
            ..one
        };
        Self::new(&summary, mean(one.uptime, other.uptime))
    }
}

/// Makes room for one more: merges the oldest two neighbours that are alike, or forgets the oldest.
pub(super) fn make_room(past: &mut Vec<Past>, scratch: &mut Scratch) {
    let older = past.len().div_ceil(2);
    let alike = (1..older)
        .find(|&index| past[index - 1].like(&past[index]) && past[index].count + past[index - 1].count <= TOGETHER)
        .or_else(|| (1..older).find(|&index| past[index - 1].like(&past[index])));
    match alike {
        Some(index) => {
            past[index - 1] = past[index - 1].merged(&past[index], scratch);
            past.remove(index);
        }
        None => {
            past.remove(0);
        }
    }
}

fn most(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::MIN_POSITIVE, f32::max)
}
