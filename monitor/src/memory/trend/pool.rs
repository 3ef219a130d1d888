//! Several incarnations as one series by uptime.

use super::{
    shape::Shape,
    stats::{self, Dot},
    summary::Summary,
};

/// Standard deviations above chance below which a shape is not looked for.
const LEAST_Z: f32 = 3.0;
const LEAST_Z_LATE: f32 = 1.5;

/// What they say together. Bytes and seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pool {
    pub(super) count: usize,
    /// Uptime of the longest.
    pub(super) longest: f32,
    /// Uptime, all added up.
    pub(super) uptime: f32,
    /// Standard deviations of rising pairs above chance: of all, of second halves.
    pub(super) z: f32,
    pub(super) z_late: f32,
    /// Weighted medians.
    pub(super) slope: f32,
    pub(super) late: f32,
    /// Growth of the second halves to that of the first: 1 for a line, 0 for what is full.
    pub(super) ratio: f32,
    /// Share of uptime in incarnations that rise, and in those that rise late.
    pub(super) rising: f32,
    pub(super) rising_late: f32,
    /// Growth of an incarnation against how far it strays from its line; many, that stray each in its own way, say more.
    pub(super) clear: f32,
    /// Mean late slope against its error, as the incarnations differ; 0 of fewer than three.
    pub(super) t_late: f32,
    pub(super) amplitude: f32,
    /// Whether it is a line.
    pub(super) shape: Shape,
}

/// Only incarnations at least half as long as the longest are compared: the others lack its second half.
pub(super) fn pool<'a>(summaries: impl Iterator<Item = &'a Summary> + Clone) -> Option<Pool> {
    let longest = summaries.clone().map(|summary| summary.uptime).fold(0.0, f32::max);
    let kept: Vec<&Summary> = summaries.filter(|summary| summary.uptime >= longest / 2.0).collect();
    if kept.is_empty() {
        return None;
    }
    let sum = |of: &dyn Fn(&Summary) -> f32| kept.iter().map(|summary| of(summary)).sum::<f32>();
    let shape = |kept: &[&Summary]| {
        let curves: Vec<Vec<Dot>> = kept.iter().map(|summary| summary.dots().collect()).collect();
        let groups: Vec<(&[Dot], f32)> =
            curves.iter().zip(kept).map(|(curve, one)| (curve.as_slice(), one.count)).collect();
        Shape::of(&groups)
    };
    let uptime = sum(&|one| one.weight());
    let number = sum(&|one| one.count);
    let middle = |of: &dyn Fn(&Summary) -> f32| {
        let mut values: Vec<_> = kept.iter().map(|summary| (of(summary), summary.weight())).collect();
        stats::weighted_median(&mut values)
    };
    let share = |of: &dyn Fn(&Summary) -> bool| sum(&|one| if of(one) { one.weight() } else { 0.0 }) / uptime;
    let early = sum(&|one| one.weight() * one.early).max(0.0);
    let late = sum(&|one| one.weight() * one.late);
    let t_late = {
        let mean = late / uptime;
        let scatter = sum(&|one| (one.weight() * (one.late - mean)).powi(2)).sqrt() / uptime;
        if kept.len() < 3 || scatter <= 0.0 { 0.0 } else { mean / scatter }
    };
    let mut pool = Pool {
        count: kept.len(),
        longest,
        uptime,
        z: sum(&|one| one.s) / sum(&|one| one.v).sqrt().max(f32::MIN_POSITIVE),
        z_late: sum(&|one| one.s_late) / sum(&|one| one.v_late).sqrt().max(f32::MIN_POSITIVE),
        slope: middle(&|one| one.slope),
        late: middle(&|one| one.late),
        ratio: if early > 0.0 {
            late / early
        } else if late > 0.0 {
            f32::MAX
        } else {
            0.0
        },
        rising: share(&|one| one.s > 0.0),
        rising_late: share(&|one| one.s_late > 0.0),
        clear: middle(&|one| one.slope * one.uptime / one.noise.max(1.0)) * (number / 3.0).sqrt().max(1.0),
        t_late,
        amplitude: middle(&|one| one.amplitude),
        shape: Shape::default(),
    };
    // The shape is the dearest to find out, so it is left at nothing where growth itself is in doubt.
    if pool.grows() {
        pool.shape = shape(&kept);
    }
    Some(pool)
}

/// One incarnation, or a part of one, by all its dots.
pub(super) fn alone(summary: &Summary, dots: &[Dot]) -> Option<Pool> {
    let mut pool = pool([summary].into_iter())?;
    if pool.grows() {
        pool.shape = Shape::of(&[(dots, 1.0)]);
        pool.shape.straight /= summary.inflation;
    }
    Some(pool)
}

impl Pool {
    /// Whether it rises, with little doubt, to the end.
    fn grows(&self) -> bool {
        self.z >= LEAST_Z && self.z_late >= LEAST_Z_LATE && self.slope.min(self.late) > 0.0
    }
}
