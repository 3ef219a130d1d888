//! What is kept of an incarnation: how it grew with uptime.

use serde::{Deserialize, Serialize};

use super::{
    run::Bin,
    stats::{self, Dot},
};

/// The beginning is left out, where everything grows: seconds, and share of the uptime.
const SKIP_SECONDS: f32 = 1800.0;
const SKIP_SHARE: f32 = 0.1;
/// Fewer bins say nothing.
const LEAST_BINS: usize = 12;

/// Growth of one incarnation or of a part of one. Bytes and seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Summary {
    /// 0 where it is not known.
    pub(super) build: u32,
    /// Uptime at its end.
    pub(super) uptime: f32,
    /// Bytes a second: of all of it, of its first half and of its second half.
    pub(super) slope: f32,
    pub(super) early: f32,
    pub(super) late: f32,
    /// Mann–Kendall sums and their variances: of all of it, and of its second half.
    pub(super) s: f32,
    pub(super) v: f32,
    pub(super) s_late: f32,
    pub(super) v_late: f32,
    /// Of its floor, at its end.
    pub(super) floor: f32,
    /// How far the floor strays from its line.
    pub(super) noise: f32,
    /// How far peaks stand above that line.
    pub(super) amplitude: f32,
}

/// Buffers that are used again and again.
#[derive(Default)]
pub(super) struct Scratch {
    dots: Vec<Dot>,
    residuals: Vec<f32>,
    slopes: Vec<f32>,
}

impl Summary {
    /// Summarises bins from the uptime `from` on; `gain` is bytes for each core of load. `None`: too little was seen.
    pub(super) fn of(
        bins: impl Iterator<Item = (f32, Bin)> + Clone,
        from: f32,
        gain: f32,
        build: u32,
        scratch: &mut Scratch,
    ) -> Option<Self> {
        let Scratch { dots, residuals, slopes } = scratch;
        let uptime = bins.clone().last()?.0;
        let skip = from.max(SKIP_SECONDS).max(uptime * SKIP_SHARE);
        let kept = bins.filter(|(middle, _)| *middle >= skip);
        dots.clear();
        dots.extend(kept.clone().map(|(x, bin)| Dot { x, y: bin.floor - gain * bin.cpu.max(0.0) }));
        if dots.len() < LEAST_BINS {
            return None;
        }
        let slope = stats::slope(dots, slopes);
        let half = dots.len() / 2;
        let early = stats::slope(&dots[..half], slopes);
        let late = stats::slope(&dots[half..], slopes);
        residuals.clear();
        residuals.extend(dots.iter().map(|dot| dot.y - slope * dot.x));
        let noise = stats::spread(residuals, slopes);
        let inflation = {
            let rho = stats::persistence(residuals);
            (1.0 + rho) / (1.0 - rho)
        };
        let (s, v) = stats::rising(dots);
        let (s_late, v_late) = stats::rising(&dots[half..]);
        // The floor as it is, load and all, by the line of the second half.
        slopes.clear();
        slopes.extend(kept.clone().skip(half).map(|(x, bin)| bin.floor - late * (x - uptime)));
        let floor = stats::median(slopes);
        let above = kept.skip(half).map(|(x, bin)| bin.peak - floor - late * (x - uptime));
        let amplitude = above.fold(0.0, f32::max);
        Some(Self {
            build,
            uptime,
            slope,
            early,
            late,
            s,
            v: v * inflation,
            s_late,
            v_late: v_late * inflation,
            floor,
            noise,
            amplitude,
        })
    }
}
