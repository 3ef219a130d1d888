//! The first algorithm, from its published description and in code of its own, so that both are measured on the same
//! services. All incarnations are pooled by uptime, and a leak is what grows and whose second half grows like its first.
//!
//! Shares of the limit, days and cores.

use std::collections::VecDeque;

use crate::service::Minute;

const BINS: usize = 64;
const LEAST_BINS: usize = 12;
const PAST: usize = 16;
const HOUR: f64 = 1.0 / 24.0;
const MINUTE: f64 = HOUR / 60.0;
/// Hourly verdicts in a row.
const HELD: u32 = 6;

#[derive(Clone, Copy)]
struct Bin {
    least: f64,
    most: f64,
    cpu: f64,
    count: f64,
}

/// An incarnation as it is remembered.
struct Summary {
    s: f64,
    v: f64,
    s_late: f64,
    v_late: f64,
    slope: f64,
    early: f64,
    late: f64,
    uptime: f64,
    floor: f64,
    noise: f64,
    amplitude: f64,
}

/// When it would first have alerted, in days.
pub(crate) fn alert(minutes: &[Minute]) -> Option<f64> {
    let mut past: VecDeque<Summary> = VecDeque::new();
    let mut bins: Vec<Bin> = Vec::new();
    let mut width = MINUTE;
    let (mut start, mut held) = (minutes.first()?.start, 0);
    for (index, minute) in minutes.iter().enumerate() {
        if minute.start != start {
            if let Some(summary) = summarise(&bins, width).filter(|one| one.uptime >= 2.0 * HOUR) {
                if past.len() == PAST {
                    past.pop_front();
                }
                past.push_back(summary);
            }
            bins.clear();
            (start, width) = (minute.start, MINUTE);
        }
        let uptime = minute.time - minute.start;
        while uptime >= width * BINS as f64 {
            bins = bins.chunks(2).map(|pair| pair.iter().copied().reduce(Bin::with).unwrap_or(pair[0])).collect();
            width *= 2.0;
        }
        let seen = Bin { least: minute.memory, most: minute.memory, cpu: minute.cpu, count: 1.0 };
        // Half a minute, so that rounding does not put it into the bin before.
        match bins.get_mut(((uptime + MINUTE / 2.0) / width) as usize) {
            Some(bin) => *bin = bin.with(seen),
            None => bins.push(seen),
        }
        if index % 60 == 59 {
            let current = summarise(&bins, width);
            held = if judge(&past, current.as_ref()) { held + 1 } else { 0 };
            if held >= HELD {
                return Some(minute.time);
            }
        }
    }
    None
}

impl Bin {
    fn with(self, other: Self) -> Self {
        let count = self.count + other.count;
        Self {
            least: self.least.min(other.least),
            most: self.most.max(other.most),
            cpu: (self.cpu * self.count + other.cpu * other.count) / count,
            count,
        }
    }
}

fn summarise(bins: &[Bin], width: f64) -> Option<Summary> {
    let uptime = bins.len() as f64 * width;
    let skip = (0.5 * HOUR).max(0.1 * uptime);
    let kept: Vec<(f64, Bin)> = bins
        .iter()
        .enumerate()
        .map(|(index, bin)| ((index as f64 + 0.5) * width, *bin))
        .filter(|(at, _)| *at >= skip)
        .collect();
    if kept.len() < LEAST_BINS {
        return None;
    }
    let gain = gain(&kept);
    let dots: Vec<(f64, f64)> = kept.iter().map(|(at, bin)| (*at, bin.least - gain * bin.cpu)).collect();
    let (first, second) = dots.split_at(dots.len() / 2);
    let (slope, early, late) = (theil_sen(&dots), theil_sen(first), theil_sen(second));
    let residuals: Vec<f64> = dots.iter().map(|(x, y)| y - slope * x).collect();
    let centre = median(residuals.clone());
    let noise = 1.4826 * median(residuals.iter().map(|one| (one - centre).abs()).collect());
    let rho = lag_one(&residuals);
    let inflation = (1.0 + rho) / (1.0 - rho);
    let (s, v) = kendall(&dots);
    let (s_late, v_late) = kendall(second);
    let floor = centre + slope * uptime;
    let amplitude = kept.iter().map(|(x, bin)| bin.most - (centre + slope * x)).fold(0.0, f64::max);
    let (v, v_late) = (v * inflation, v_late * inflation);
    Some(Summary { s, v, s_late, v_late, slope, early, late, uptime, floor, noise, amplitude })
}

/// Memory for each core, by first differences; 0 unless it is certain.
fn gain(kept: &[(f64, Bin)]) -> f64 {
    let steps = kept.windows(2).map(|pair| (pair[1].1.least - pair[0].1.least, pair[1].1.cpu - pair[0].1.cpu));
    let (mut mm, mut mc, mut cc) = (0.0, 0.0, 0.0);
    for (m, c) in steps {
        mm += m * m;
        mc += m * c;
        cc += c * c;
    }
    if mc <= 0.0 || cc <= 0.0 {
        return 0.0;
    }
    let gain = mc / cc;
    let error = ((mm - gain * mc).max(0.0) / (kept.len() as f64 - 2.0) / cc).sqrt();
    if gain > 4.0 * error { gain } else { 0.0 }
}

fn judge(past: &VecDeque<Summary>, current: Option<&Summary>) -> bool {
    let all: Vec<&Summary> = past.iter().chain(current).collect();
    let Some(last) = all.last() else { return false };
    let longest = all.iter().map(|one| one.uptime).fold(0.0, f64::max);
    let uptime: f64 = all.iter().map(|one| one.uptime).sum();
    let together = longest >= 24.0 * HOUR || (all.len() >= 3 && uptime >= 48.0 * HOUR);
    let alone = current.filter(|one| one.uptime >= 24.0 * HOUR);
    (uptime >= 12.0 * HOUR && together && leaks(&all, last, longest, 3.3, 2.0))
        || alone.is_some_and(|one| leaks(&[one], one, one.uptime, 4.0, 4.0))
}

fn leaks(all: &[&Summary], last: &Summary, longest: f64, z: f64, snr: f64) -> bool {
    let sum = |of: &dyn Fn(&Summary) -> f64| all.iter().map(|one| of(one)).sum::<f64>();
    let total = sum(&|one| one.uptime);
    let share = |of: &dyn Fn(&Summary) -> bool| sum(&|one| if of(one) { one.uptime } else { 0.0 }) / total;
    let middle = |of: &dyn Fn(&Summary) -> f64| {
        let mut values: Vec<(f64, f64)> = all.iter().map(|one| (of(one), one.uptime)).collect();
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut sum = 0.0;
        let found = values.iter().find(|(_, weight)| {
            sum += weight;
            sum >= total / 2.0
        });
        found.map_or(0.0, |(value, _)| *value)
    };
    let slope = middle(&|one| one.slope).min(middle(&|one| one.late));
    let grows = sum(&|one| one.s) >= z * sum(&|one| one.v).sqrt()
        && share(&|one| one.s > 0.0) >= 0.8
        && share(&|one| one.s_late > 0.0) >= 0.7
        && slope >= 0.01
        && (1.0 - last.floor - middle(&|one| one.amplitude)).max(0.0) / slope <= 60.0
        && middle(&|one| one.slope * one.uptime / one.noise.max(1e-9)) >= snr;
    let long = |of: &dyn Fn(&Summary) -> f64| sum(&|one| if one.uptime >= longest / 2.0 { of(one) } else { 0.0 });
    let early = long(&|one| one.uptime * one.early.max(0.0));
    let late = long(&|one| one.uptime * one.late);
    grows && late >= 0.6 * early && long(&|one| one.s_late) >= 2.33 * long(&|one| one.v_late).sqrt()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

fn pairs(dots: &[(f64, f64)]) -> impl Iterator<Item = ((f64, f64), (f64, f64))> {
    dots.iter().enumerate().flat_map(|(index, a)| dots[index + 1..].iter().map(move |b| (*a, *b)))
}

fn theil_sen(dots: &[(f64, f64)]) -> f64 {
    median(pairs(dots).map(|(a, b)| (b.1 - a.1) / (b.0 - a.0)).collect())
}

fn kendall(dots: &[(f64, f64)]) -> (f64, f64) {
    let n = dots.len() as f64;
    let s = pairs(dots).map(|(a, b)| f64::from(i8::from(b.1 > a.1) - i8::from(b.1 < a.1))).sum();
    (s, n * (n - 1.0) * (2.0 * n + 5.0) / 18.0)
}

fn lag_one(residuals: &[f64]) -> f64 {
    let mean = residuals.iter().sum::<f64>() / residuals.len() as f64;
    let own: f64 = residuals.iter().map(|one| (one - mean).powi(2)).sum();
    let next: f64 = residuals.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
    if own > 0.0 { (next / own).clamp(0.0, 0.95) } else { 0.0 }
}
