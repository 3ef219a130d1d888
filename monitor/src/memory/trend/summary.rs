//! What is kept of an incarnation: how it grew with uptime.

use super::{
    run::Bin,
    stats::{self, Dot},
};

/// The beginning is left out, where everything grows: seconds, and share of the uptime.
const SKIP_SECONDS: f32 = 1800.0;
const SKIP_SHARE: f32 = 0.1;
/// Fewer bins say nothing.
const LEAST_BINS: usize = 12;

/// Points that the curve of an incarnation is kept in.
pub(super) const POINTS: usize = 8;

/// Growth of one incarnation or of a part of one. Bytes and seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Summary {
    /// 0 where it is not known.
    pub(super) build: u16,
    /// Uptime from which on it is summarised, and at its end.
    pub(super) from: f32,
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
    /// Medians of equal parts, above the least of them. Not a number where nothing was seen.
    pub(super) curve: [f32; POINTS],
    /// Mean load of the same parts, cores.
    pub(super) loads: [f32; POINTS],
    /// How many incarnations this stands for.
    pub(super) count: f32,
    /// How much less the values say because each is like the one before: 1 where it is not.
    pub(super) inflation: f32,
}

/// Load added up over time.
#[derive(Default)]
struct Work {
    sum: f32,
    last: Option<(f32, f32)>,
}

impl Work {
    fn add(&mut self, x: f32, load: f32) -> f32 {
        if let Some((before, then)) = self.last {
            self.sum += (x - before) * f32::midpoint(then, load);
        }
        self.last = Some((x, load));
        self.sum
    }
}

/// Buffers that are used again and again.
#[derive(Default)]
pub(super) struct Scratch {
    /// What was summarised last, without its load.
    pub(super) dots: Vec<Dot>,
    residuals: Vec<f32>,
    pub(super) slopes: Vec<f32>,
}

impl Summary {
    /// Summarises bins from the uptime `from` on; `gain` is bytes for each core of load. `None`: too little was seen.
    pub(super) fn of(
        bins: impl Iterator<Item = (f32, Bin)> + Clone,
        from: f32,
        gain: f32,
        build: u16,
        scratch: &mut Scratch,
    ) -> Option<Self> {
        let Scratch { dots, residuals, slopes } = scratch;
        let uptime = bins.clone().last()?.0;
        let skip = from.max(SKIP_SECONDS).max(uptime * SKIP_SHARE);
        let kept = bins.filter(|(middle, _)| *middle >= skip);
        dots.clear();
        let mut work = Work::default();
        dots.extend(kept.clone().map(|(x, bin)| {
            let load = bin.cpu.max(0.0);
            Dot { x, y: bin.floor - gain * load, load, work: work.add(x, load) }
        }));
        if dots.len() < LEAST_BINS {
            return None;
        }
        let from = dots[0].x;
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
        let (curve, loads) = curve(dots, from, uptime, slopes);
        Some(Self {
            build,
            from,
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
            curve,
            loads,
            count: 1.0,
            inflation,
        })
    }

    /// How much it counts: its uptime, all incarnations together.
    pub(super) fn weight(&self) -> f32 {
        self.uptime * self.count
    }

    /// The curve as dots at the middles of its parts.
    pub(super) fn dots(&self) -> impl Iterator<Item = Dot> {
        let (from, part) = (self.from, (self.uptime - self.from) / POINTS as f32);
        let seen = self.curve.into_iter().enumerate().filter(|(_, y)| y.is_finite());
        let mut work = Work::default();
        seen.map(move |(index, y)| {
            let (x, load) = (from + (index as f32 + 0.5) * part, self.loads[index]);
            Dot { x, y, load, work: work.add(x, load) }
        })
    }
}

fn curve(dots: &[Dot], from: f32, uptime: f32, scratch: &mut Vec<f32>) -> ([f32; POINTS], [f32; POINTS]) {
    let part = (uptime - from) / POINTS as f32;
    let (mut curve, mut loads) = ([f32::NAN; POINTS], [0.0; POINTS]);
    let mut rest = dots;
    for index in 0..POINTS {
        let end = if index + 1 == POINTS { f32::INFINITY } else { from + (index as f32 + 1.0) * part };
        let (here, after) = rest.split_at(rest.partition_point(|dot| dot.x < end));
        rest = after;
        if !here.is_empty() {
            scratch.clear();
            scratch.extend(here.iter().map(|dot| dot.y));
            curve[index] = stats::median(scratch);
            loads[index] = here.iter().map(|dot| dot.load).sum::<f32>() / here.len() as f32;
        }
    }
    let least = curve.iter().copied().fold(f32::INFINITY, f32::min);
    (curve.map(|y| y - least), loads)
}
