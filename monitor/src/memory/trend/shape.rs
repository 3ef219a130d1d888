//! A line, or a curve that levels off? The two look alike for long; the question is which explains the dots better.
//!
//! Each incarnation has a level of its own; everything else is common to all of them, so a bend that no single one shows
//! is seen in all of them together. Least squares, over a small set of curves:
//!
//! * what fills up: `1 - exp(-u/τ)`, and `ln(1 + u/τ)`, which caches do
//! * what leaks: a line, a line with a warm-up before it, a line that begins late, and the same by load instead of time

use super::{run::HOUR, stats::Dot};

/// Warm-ups that may go before a line: τ in seconds.
const WARM_UPS: [f32; 5] = [0.75 * H, 1.5 * H, 3.0 * H, 4.5 * H, 6.5 * H];
/// What fills up: the same and slower.
const FILLS: [f32; 8] = [0.75 * H, 1.5 * H, 3.0 * H, 4.5 * H, 6.5 * H, 9.0 * H, 13.0 * H, 18.0 * H];
const LOGARITHMS: [f32; 4] = [0.25 * H, 1.0 * H, 3.0 * H, 7.0 * H];
/// The same as shares of the longest uptime: nothing is known of how slow a cache may be.
const FILLS_SHARE: [f32; 3] = [0.3, 0.6, 1.0];
const FILL_MOST: f32 = 1.25;
const LOGARITHMS_SHARE: [f32; 1] = [0.25];
/// A warm-up and a cache together.
const BOTH: [(f32, f32); 4] = [(1.5 * H, 1.0 * H), (4.5 * H, 1.0 * H), (1.5 * H, 5.0 * H), (4.5 * H, 5.0 * H)];
/// Where a line may begin, as shares of the longest uptime.
const LATE: [f32; 3] = [0.25, 0.5, 0.7];
const H: f32 = HOUR as f32;
/// Share of all squares that is not worth a difference: the curves are a coarse set, and no service keeps to one.
const COARSE: f64 = 1e-3;

/// Sums of products: of curves f and g, the line u, the load l, and memory y.
#[derive(Clone, Copy, Default)]
struct Raw {
    ff: f64,
    fg: f64,
    gg: f64,
    fu: f64,
    fl: f64,
    gl: f64,
    fy: f64,
    gy: f64,
    ll: f64,
    ly: f64,
    yy: f64,
}

/// The dots of an incarnation, and how many incarnations they stand for.
pub(super) type Group<'a> = (&'a [Dot], f32);

/// How the dots are spread about the mean of their incarnation.
struct Fit<'a> {
    groups: &'a [Group<'a>],
    ll: f64,
    lu: f64,
    ly: f64,
    uu: f64,
    uy: f64,
    yy: f64,
    loaded: f32,
}

/// What the comparison says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Shape {
    /// How much better a leak explains the dots than anything that fills up: differences of squares in units of the
    /// variance that is left. Below 0: worse.
    pub(super) straight: f32,
    /// Growth in the second half to that in the first: 1 for a line, 0 for what is full.
    pub(super) ratio: f32,
    /// Share of what strays from a line that the load explains.
    pub(super) loaded: f32,
}

impl Shape {
    /// Compares; each group is an incarnation.
    pub(super) fn of(groups: &[Group<'_>]) -> Self {
        let fit = Fit::new(groups);
        let longest = groups.iter().filter_map(|(dots, _)| dots.last()).map(|dot| dot.x).fold(0.0, f32::max);
        let count: usize = groups.iter().map(|(dots, _)| dots.len()).sum();
        let free = count as f64 - groups.len() as f64 - 2.0;
        if fit.uu <= 0.0 || fit.yy <= 0.0 || free < 3.0 {
            return Self::default();
        }
        let none = |_: &Dot| 0.0;
        let fill = |tau: f32| move |dot: &Dot| f64::from(1.0 - (-dot.x / tau).exp());
        let logarithm = |tau: f32| move |dot: &Dot| f64::from((dot.x / tau).ln_1p());
        let mut healthy = fit.yy;
        let slowest = FILL_MOST * longest;
        let fills = FILLS.into_iter().filter(|tau| *tau <= slowest);
        for tau in fills.chain(FILLS_SHARE.map(|share| share * longest)) {
            healthy = healthy.min(fit.alone(&fit.sums(fill(tau), none)));
        }
        for tau in LOGARITHMS.into_iter().chain(LOGARITHMS_SHARE.map(|share| share * longest)) {
            healthy = healthy.min(fit.alone(&fit.sums(logarithm(tau), none)));
        }
        for (tau, slower) in BOTH {
            let sums = fit.sums(fill(tau), logarithm(slower));
            if let Some(rest) = fit.both(sums.ff, sums.fg, sums.gg, sums.fy, sums.gy) {
                healthy = healthy.min(rest);
            }
        }
        let mut leak = fit.yy - fit.uy.max(0.0).powi(2) / fit.uu;
        for tau in WARM_UPS {
            let sums = fit.sums(fill(tau), none);
            if let Some(rest) = fit.both(sums.ff, sums.fu, fit.uu, sums.fy, fit.uy) {
                leak = leak.min(rest);
            }
        }
        for share in LATE {
            let begin = share * longest;
            let sums = fit.sums(move |dot: &Dot| f64::from((dot.x - begin).max(0.0)), none);
            leak = leak.min(fit.alone(&sums));
        }
        if fit.ll > 0.0 {
            let sums = fit.sums(|dot| f64::from(dot.work), none);
            leak = leak.min(fit.alone(&sums));
        }
        let variance = (leak / free).max(COARSE * fit.yy / count as f64);
        Self { straight: ((healthy - leak) / variance) as f32, ratio: fit.ratio(longest), loaded: fit.loaded }
    }
}

impl<'a> Fit<'a> {
    fn new(groups: &'a [Group<'a>]) -> Self {
        let mut fit = Self { groups, ll: 0.0, lu: 0.0, ly: 0.0, uu: 0.0, uy: 0.0, yy: 0.0, loaded: 0.0 };
        let line = fit.raw(|dot| f64::from(dot.x), |_| 0.0);
        (fit.ll, fit.lu, fit.ly) = (line.ll, line.fl, line.ly);
        (fit.uu, fit.uy, fit.yy) = (line.ff, line.fy, line.yy);
        if fit.ll > 0.0 && fit.uu > 0.0 {
            let load = fit.ll - fit.lu * fit.lu / fit.uu;
            let both = fit.ly - fit.lu * fit.uy / fit.uu;
            let rest = fit.yy - fit.uy * fit.uy / fit.uu;
            fit.loaded = if load > 0.0 && rest > 0.0 { (both * both / (load * rest)) as f32 } else { 0.0 };
            fit.uu -= fit.lu * fit.lu / fit.ll;
            fit.uy -= fit.lu * fit.ly / fit.ll;
            fit.yy -= fit.ly * fit.ly / fit.ll;
        }
        fit
    }

    /// Sums of products of two curves, the line, load and memory, each about its mean in each incarnation.
    fn raw(&self, one: impl Fn(&Dot) -> f64, other: impl Fn(&Dot) -> f64) -> Raw {
        let mut raw = Raw::default();
        for (dots, weight) in self.groups {
            let Some(first) = dots.first() else { continue };
            let (n, weight) = (dots.len() as f64, f64::from(*weight));
            // Of curve, curve, line, load and memory, about the first dot, so that little is lost to rounding.
            let mut sum = [0.0; 5];
            let mut products = [0.0; 12];
            for dot in *dots {
                let f = one(dot) - one(first);
                let g = other(dot) - other(first);
                let u = f64::from(dot.x - first.x);
                let l = f64::from(dot.load - first.load);
                let y = f64::from(dot.y - first.y);
                for (total, value) in sum.iter_mut().zip([f, g, u, l, y]) {
                    *total += value;
                }
                let pairs = [f * f, f * g, g * g, f * u, f * l, g * l, f * y, g * y, l * l, l * y, y * y];
                for (total, value) in products.iter_mut().zip(pairs) {
                    *total += value;
                }
            }
            let [f, g, u, l, y] = sum;
            let about = |index: usize, a: f64, b: f64| weight * (products[index] - a * b / n);
            raw.ff += about(0, f, f);
            raw.fg += about(1, f, g);
            raw.gg += about(2, g, g);
            raw.fu += about(3, f, u);
            raw.fl += about(4, f, l);
            raw.gl += about(5, g, l);
            raw.fy += about(6, f, y);
            raw.gy += about(7, g, y);
            raw.ll += about(8, l, l);
            raw.ly += about(9, l, y);
            raw.yy += about(10, y, y);
        }
        raw
    }

    /// The same with what the load explains taken out (Frisch and Waugh 1933).
    fn sums(&self, one: impl Fn(&Dot) -> f64, other: impl Fn(&Dot) -> f64) -> Raw {
        let mut raw = self.raw(one, other);
        if self.ll > 0.0 {
            raw.ff -= raw.fl * raw.fl / self.ll;
            raw.fg -= raw.fl * raw.gl / self.ll;
            raw.gg -= raw.gl * raw.gl / self.ll;
            raw.fu -= raw.fl * self.lu / self.ll;
            raw.fy -= raw.fl * self.ly / self.ll;
            raw.gy -= raw.gl * self.ly / self.ll;
        }
        raw
    }

    /// Squares that are left by a curve that rises or is not there.
    fn alone(&self, sums: &Raw) -> f64 {
        if sums.ff > 0.0 { self.yy - sums.fy.max(0.0).powi(2) / sums.ff } else { self.yy }
    }

    /// Squares that are left by two curves that both rise.
    fn both(&self, ff: f64, fg: f64, gg: f64, fy: f64, gy: f64) -> Option<f64> {
        let (a, b) = solve(ff, fg, gg, fy, gy)?;
        (a > 0.0 && b > 0.0).then_some(self.yy - a * fy - b * gy)
    }

    /// Two lines that meet in the middle: the slope of the second to that of the first.
    fn ratio(&self, longest: f32) -> f32 {
        let first = self.groups.iter().filter_map(|(dots, _)| dots.first()).map(|dot| dot.x).fold(longest, f32::min);
        let middle = f32::midpoint(first, longest);
        let sums = self.sums(|dot| f64::from((dot.x - middle).max(0.0)), |_| 0.0);
        match solve(sums.ff, sums.fu, self.uu, sums.fy, self.uy) {
            Some((more, early)) if early > 0.0 => ((early + more) / early) as f32,
            Some((more, early)) if early + more > 0.0 => f32::MAX,
            _ => 0.0,
        }
    }
}

/// The two unknowns of two normal equations.
fn solve(ff: f64, fg: f64, gg: f64, fy: f64, gy: f64) -> Option<(f64, f64)> {
    let determinant = ff * gg - fg * fg;
    (determinant > ff * gg * 1e-6).then(|| ((fy * gg - gy * fg) / determinant, (gy * ff - fy * fg) / determinant))
}
