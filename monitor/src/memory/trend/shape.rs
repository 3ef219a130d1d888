//! A line, or a curve that levels off? The two look alike for long; the question is which explains the dots better.
//!
//! Each incarnation has a level of its own; everything else is common to all of them, so a bend that no single one shows
//! is seen in all of them together. Least squares, over a small set of curves:
//!
//! * what fills up: `1 - exp(-u/τ)`, and `ln(1 + u/τ)`, which caches do
//! * what leaks: a line, a line with a warm-up before it, a line that begins late

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

/// Sums over all dots, each incarnation about its own mean: of a curve f, the line u, and memory y.
#[derive(Clone, Copy, Default)]
struct Sums {
    ff: f64,
    fu: f64,
    fy: f64,
}

/// How the dots are spread about the mean of their incarnation.
struct Fit<'a> {
    groups: &'a [&'a [Dot]],
    uu: f64,
    uy: f64,
    yy: f64,
}

/// What the comparison says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Shape {
    /// How much better a leak explains the dots than anything that fills up: differences of squares in units of the
    /// variance that is left. Below 0: worse.
    pub(super) straight: f32,
    /// Bytes a second of the leak that explains them best.
    pub(super) slope: f32,
}

impl Shape {
    /// Compares; each group is an incarnation.
    pub(super) fn of(groups: &[&[Dot]]) -> Self {
        let fit = Fit::new(groups);
        let longest = groups.iter().filter_map(|group| group.last()).map(|dot| dot.x).fold(0.0, f32::max);
        let count: usize = groups.iter().map(|group| group.len()).sum();
        let free = count as f64 - groups.len() as f64 - 2.0;
        if fit.uu <= 0.0 || fit.yy <= 0.0 || free < 3.0 {
            return Self::default();
        }
        let fill = |tau: f32| fit.sums(move |u| 1.0 - (-u / tau).exp());
        let logarithm = |tau: f32| fit.sums(move |u| (u / tau).ln_1p());
        let mut healthy = fit.yy;
        for tau in FILLS.into_iter().filter(|tau| *tau <= FILL_MOST * longest).chain(FILLS_SHARE.map(|share| share * longest)) {
            healthy = healthy.min(fit.alone(fill(tau)));
        }
        for tau in LOGARITHMS.into_iter().chain(LOGARITHMS_SHARE.map(|share| share * longest)) {
            healthy = healthy.min(fit.alone(logarithm(tau)));
        }
        for (tau, slower) in BOTH {
            healthy = healthy.min(fit.both(|u| 1.0 - (-u / tau).exp(), |u| (u / slower).ln_1p()));
        }
        let mut leak = (fit.yy - fit.uy.max(0.0).powi(2) / fit.uu, fit.uy / fit.uu);
        let mut consider = |(rest, slope): (f64, f64)| {
            if rest < leak.0 {
                leak = (rest, slope);
            }
        };
        for tau in WARM_UPS {
            if let Some(found) = fit.with_line(fill(tau)) {
                consider(found);
            }
        }
        for share in LATE {
            let begin = share * longest;
            let sums = fit.sums(move |u| (u - begin).max(0.0));
            if sums.ff > 0.0 && sums.fy > 0.0 {
                consider((fit.alone(sums), sums.fy / sums.ff));
            }
        }
        let variance = (leak.0 / free).max(fit.yy * 1e-9);
        Self { straight: ((healthy - leak.0) / variance) as f32, slope: leak.1 as f32 }
    }
}

impl<'a> Fit<'a> {
    fn new(groups: &'a [&'a [Dot]]) -> Self {
        let mut fit = Self { groups, uu: 0.0, uy: 0.0, yy: 0.0 };
        for group in groups {
            let n = group.len() as f64;
            let (mut u, mut y) = (0.0, 0.0);
            for dot in *group {
                u += f64::from(dot.x);
                y += f64::from(dot.y);
            }
            for dot in *group {
                let (du, dy) = (f64::from(dot.x) - u / n, f64::from(dot.y) - y / n);
                fit.uu += du * du;
                fit.uy += du * dy;
                fit.yy += dy * dy;
            }
        }
        fit
    }

    fn sums(&self, curve: impl Fn(f32) -> f32) -> Sums {
        let mut sums = Sums::default();
        for group in self.groups {
            let n = group.len() as f64;
            let (mut f, mut u, mut y, mut ff, mut fu, mut fy) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
            let Some(first) = group.first() else { continue };
            for dot in *group {
                // About the first, so that little is lost to rounding.
                let (df, du, dy) = (f64::from(curve(dot.x)), f64::from(dot.x - first.x), f64::from(dot.y - first.y));
                f += df;
                u += du;
                y += dy;
                ff += df * df;
                fu += df * du;
                fy += df * dy;
            }
            sums.ff += ff - f * f / n;
            sums.fu += fu - f * u / n;
            sums.fy += fy - f * y / n;
        }
        sums
    }

    /// Squares that are left by a curve that rises or is not there.
    fn alone(&self, sums: Sums) -> f64 {
        if sums.ff > 0.0 { self.yy - sums.fy.max(0.0).powi(2) / sums.ff } else { self.yy }
    }

    /// Squares that are left by two curves that both rise.
    fn both(&self, one: impl Fn(f32) -> f32, other: impl Fn(f32) -> f32) -> f64 {
        let (mut ff, mut gg, mut fg, mut fy, mut gy) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for group in self.groups {
            let n = group.len() as f64;
            let Some(first) = group.first() else { continue };
            let (mut f, mut g, mut y) = (0.0, 0.0, 0.0);
            let (mut aff, mut agg, mut afg, mut afy, mut agy) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for dot in *group {
                let (df, dg, dy) = (f64::from(one(dot.x)), f64::from(other(dot.x)), f64::from(dot.y - first.y));
                f += df;
                g += dg;
                y += dy;
                aff += df * df;
                agg += dg * dg;
                afg += df * dg;
                afy += df * dy;
                agy += dg * dy;
            }
            ff += aff - f * f / n;
            gg += agg - g * g / n;
            fg += afg - f * g / n;
            fy += afy - f * y / n;
            gy += agy - g * y / n;
        }
        let determinant = ff * gg - fg * fg;
        if determinant <= ff * gg * 1e-6 {
            return self.yy;
        }
        let (a, b) = ((fy * gg - gy * fg) / determinant, (gy * ff - fy * fg) / determinant);
        if a > 0.0 && b > 0.0 { self.yy - a * fy - b * gy } else { self.yy }
    }

    /// Squares that are left by a line with a curve, and the line's slope; both rise.
    fn with_line(&self, sums: Sums) -> Option<(f64, f64)> {
        let determinant = self.uu * sums.ff - sums.fu * sums.fu;
        if determinant <= self.uu * sums.ff * 1e-6 {
            return None;
        }
        let slope = (self.uy * sums.ff - sums.fy * sums.fu) / determinant;
        let height = (sums.fy * self.uu - self.uy * sums.fu) / determinant;
        (slope > 0.0 && height > 0.0).then(|| (self.yy - slope * self.uy - height * sums.fy, slope))
    }
}
