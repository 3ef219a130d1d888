//! The hourly verdict.

use serde::{Deserialize, Serialize};

use super::{
    Trend,
    pool::{Pool, alone, pool},
    run::{DAY, HOUR, Run},
    summary::{Scratch, Summary},
};
use crate::memory::forecast::{Builds, Forecast, Level, Verdict};

/// Less than this seen in all is too little for any verdict: seconds.
const LEAST_SEEN: f32 = 12.0 * HOUR as f32;
/// Hourly verdicts in a row that make an alert, and an advisory.
const HELD: u8 = 8;
const HELD_HINT: u8 = 6;

/// What evidence must be like.
struct Bar {
    z: f32,
    z_late: f32,
    clear: f32,
    t_late: f32,
    /// A line beyond doubt.
    straight: f32,
    /// Or one that goes on as nothing would that levels off, and of which nothing else is the better explanation.
    plausible: f32,
    /// Taken from the ratio that this asks for.
    ease: f32,
    loaded: f32,
    /// What several incarnations together are asked instead of how much of a line they are, see [`odds`]; with what is added
    /// where all are short.
    odds: Option<(f32, f32)>,
}

/// Rises for certain, and does not level off.
const GROWS: Bar = Bar {
    z: 3.3,
    z_late: 2.33,
    clear: 2.0,
    t_late: 2.0,
    straight: 9.0,
    plausible: 3.0,
    ease: 0.0,
    loaded: 0.1,
    odds: Some((3.6, 0.9)),
};
/// The same in a part that was picked for rising: more is asked of it.
const PICKED: Bar = Bar {
    z: 4.0,
    z_late: 3.0,
    clear: 4.0,
    t_late: 4.0,
    straight: 10.0,
    plausible: 6.0,
    ease: 0.0,
    loaded: 0.1,
    odds: None,
};
/// Enough for a hint.
const HINTS: Bar = Bar {
    z: 3.3,
    z_late: 2.0,
    clear: 1.5,
    t_late: 2.0,
    straight: 2.0,
    plausible: -1.5,
    ease: 0.33,
    loaded: 0.6,
    odds: None,
};
/// Where all incarnations are shorter than this (seconds), more is asked: warm-ups have not ended.
const SHORT: f32 = 12.0 * HOUR as f32;
const SHORT_STRICT: f32 = 1.6;
/// The slowest cache that is thought of fills with this time constant: seconds.
const SLOWEST: f32 = 18.0 * HOUR as f32;
/// Growth of its second half to its first over a long uptime: that of a cache that fills by the logarithm.
const LOGARITHM: f32 = 0.55;
/// Room for what caches there are, and for chance: that much for one incarnation, less for many.
const MARGIN: f32 = 0.02;
const CHANCE: f32 = 0.2;
/// Below this ratio it levels off, however well a line fits what is left of it.
const NO_LINE: f32 = 0.25;
/// Asked for at most.
const ALMOST_STRAIGHT: f32 = 0.92;
/// Share of uptime that rises, and that rises late.
const RISING: f32 = 0.8;
const RISING_LATE: f32 = 0.7;
/// Growth below this share of the limit in a day is none to speak of.
const LEAST_DAILY: f32 = 0.01;
/// Standard deviations above chance from which on late growth is taken for all growth to come.
const CERTAIN: f32 = 3.3;
/// Farther ahead than this is no forecast: seconds.
const HORIZON: f64 = 60.0 * DAY;
/// With less time than this to the limit (seconds), a hint is an alert.
const NO_TIME: f64 = DAY / 2.0;
/// Times the usual uptime after which no restart is expected.
const OVERDUE: f64 = 1.2;
/// One incarnation alone must have lasted this long, several together this long: seconds.
const ALONE: f32 = 24.0 * HOUR as f32;
const TOGETHER: f32 = 48.0 * HOUR as f32;
/// Fewer are not several.
const SEVERAL: usize = 3;
/// Windows in which a late onset is looked for: seconds.
const WINDOWS: [f64; 2] = [36.0 * HOUR, 47.0 * HOUR];

/// Weights of [`odds`], chosen on seeds of development.
const GOES_ON: f32 = 3.0;
const SOON: f32 = 0.5;
/// Faster growth in second halves counts for no more than this.
const MORE_THAN_STRAIGHT: f32 = 1.3;
/// Without a limit: days that a leak is taken to need.
const NO_LIMIT_DAYS: f32 = 7.0;

/// What an hour's look found. Bytes and seconds of the trend's pace.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Judgement {
    enough: bool,
    leak: bool,
    hint: bool,
    /// Of several incarnations.
    pooled: bool,
    /// Bytes a second, with the least and the most that it may be.
    slope: f32,
    /// When, and seconds from then to the limit: likely, at least, at most.
    at: f64,
    eta: Option<f64>,
    eta_low: Option<f64>,
    eta_high: Option<f64>,
}

/// How many looks in a row said so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Hold {
    leak: Count,
    hint: Count,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Count {
    looks: u8,
    on: bool,
}

impl Count {
    fn add(&mut self, yes: bool, held: u8) {
        self.looks = if yes { (self.looks + 1).min(2 * held) } else { self.looks.saturating_sub(2) };
        self.on = self.looks >= held || (self.on && self.looks > 0);
    }
}

impl Hold {
    pub(super) fn add(&mut self, judgement: &Judgement) {
        // What was certain once is given up only when not even a hint is left.
        self.leak.add(judgement.leak || (self.leak.on && judgement.hint), HELD);
        self.hint.add(judgement.hint, HELD_HINT);
    }
}

/// Looks at all that is known.
pub(super) fn judge(trend: &Trend) -> Judgement {
    let Some(run) = &trend.run else { return Judgement::default() };
    let mut scratch = Scratch::default();
    let gain = trend.load.bytes_per_core();
    let current = Summary::of(run.bins(), 0.0, gain, run.build, &mut scratch);
    let itself = current.and_then(|summary| alone(&summary, &scratch.dots));
    let past: Vec<Summary> = trend.past.iter().map(|past| past.unpack(&mut scratch)).collect();
    let all: Vec<&Summary> = past.iter().chain(&current).collect();
    let floor = current.map_or_else(|| last_floor(run), |summary| summary.floor);
    let mut found = Judgement { at: trend.last, ..Judgement::default() };
    let Some(mut everything) = pool(all.iter().copied()) else { return found };
    if everything.count == 1
        && let Some(itself) = itself.filter(|itself| itself.uptime == everything.uptime)
    {
        everything = itself;
    }
    found.enough = everything.uptime >= LEAST_SEEN;
    found.take(&everything, trend, run, floor);
    let mut consider = |pool: &Pool, bar: &Bar, single: bool| {
        let long = pool.uptime >= if pool.count >= SEVERAL { TOGETHER } else { ALONE };
        let grows = long && (pool.count >= SEVERAL || single) && passes(pool, bar, trend, floor);
        if grows && !found.leak {
            found.leak = true;
            found.pooled = pool.count >= SEVERAL;
            found.take(pool, trend, run, floor);
        }
        grows
    };
    let single = f64::from(everything.uptime) >= DAY && run.uptime >= DAY;
    if !consider(&everything, &GROWS, single) {
        if let Some(recent) = recent(&all) {
            consider(&recent, &PICKED, false);
        }
        for span in WINDOWS {
            let from = (run.uptime - span).max(0.0) as f32;
            if run.uptime > span
                && let Some(window) = Summary::of(run.hours(), from, gain, run.build, &mut scratch)
                && let Some(window) = alone(&window, &scratch.dots)
            {
                consider(&window, &PICKED, true);
            }
        }
        for share in [0.5, 0.75] {
            let from = (run.uptime * share) as f32;
            if run.uptime > 4.0 * DAY
                && let Some(window) = Summary::of(run.bins(), from, gain, run.build, &mut scratch)
                && let Some(window) = alone(&window, &scratch.dots)
            {
                consider(&window, &PICKED, true);
            }
        }
    }
    found.hint = found.leak
        || (everything.uptime >= if everything.count >= SEVERAL { TOGETHER } else { ALONE }
            && passes(&everything, &HINTS, trend, floor));
    found
}

/// The last incarnations only: as few as are several and long enough.
fn recent(mut all: &[&Summary]) -> Option<Pool> {
    if let [rest @ .., before, last] = all
        && last.uptime < before.uptime / 2.0
    {
        // It lacks the second half; the pool would leave it out, and one would be missing.
        all = &all[..=rest.len()];
    }
    let mut uptime = 0.0;
    let mut count = 0;
    for summary in all.iter().rev() {
        uptime += summary.uptime;
        count += 1;
        if uptime >= TOGETHER && count >= SEVERAL {
            return pool(all[all.len() - count..].iter().copied());
        }
    }
    None
}

fn last_floor(run: &Run) -> f32 {
    run.bins().last().map_or(0.0, |(_, bin)| bin.floor)
}

fn passes(pool: &Pool, bar: &Bar, trend: &Trend, floor: f32) -> bool {
    let slope = pool.slope.min(pool.late);
    let grows = pool.z >= bar.z
        && pool.clear >= bar.clear
        && pool.rising >= RISING
        && pool.rising_late >= RISING_LATE
        && slope > 0.0;
    let filling = (-0.45 * pool.longest / SLOWEST).exp().max(LOGARITHM);
    let asked = (filling + MARGIN + CHANCE / (pool.count as f32).sqrt()).min(ALMOST_STRAIGHT) - bar.ease;
    let ratio = pool.ratio.min(pool.shape.ratio);
    let strict = if pool.longest < SHORT { SHORT_STRICT } else { 1.0 };
    let line = match bar.odds.filter(|_| pool.count >= SEVERAL) {
        Some((asked, short)) => {
            let short = if pool.longest < SHORT { short } else { 0.0 };
            odds(pool, trend, floor) >= asked + short
        }
        None => {
            (pool.shape.straight >= bar.straight * strict && pool.ratio >= NO_LINE)
                || (pool.shape.straight >= bar.plausible * strict && ratio >= asked && pool.shape.loaded <= bar.loaded)
        }
    };
    let goes_on = line && pool.z_late >= bar.z_late && (pool.count < SEVERAL || pool.t_late >= bar.t_late);
    let matters = match trend.limit {
        Some(limit) => {
            let eta = f64::from((limit - floor - pool.amplitude).max(0.0) / slope);
            slope * DAY as f32 >= LEAST_DAILY * limit && eta <= HORIZON
        }
        None => slope * DAY as f32 >= LEAST_DAILY * floor,
    };
    grows && goes_on && matters
}

/// What speaks for a leak in several incarnations: how much better it explains them (by the logarithm: the curves are a
/// coarse set, and tenfold is not ten times as certain), how far growth goes on in second halves, and how soon the limit
/// is reached. What would be out within days is told with less certainty than what would take weeks, and caches are
/// seldom made to outgrow the limit in a week.
fn odds(pool: &Pool, trend: &Trend, floor: f32) -> f32 {
    let straight = pool.shape.straight.abs().ln_1p().copysign(pool.shape.straight);
    let goes_on = pool.ratio.min(pool.shape.ratio).min(MORE_THAN_STRAIGHT);
    let slope = pool.slope.min(pool.late);
    let days = trend
        .limit
        .filter(|_| slope > 0.0)
        .map_or(NO_LIMIT_DAYS, |limit| (limit - floor - pool.amplitude).max(0.0) / slope / DAY as f32);
    straight + GOES_ON * goes_on - SOON * days.max(0.3).ln()
}

impl Judgement {
    fn take(&mut self, pool: &Pool, trend: &Trend, run: &Run, floor: f32) {
        // Where it certainly rises late, that is the growth to come; what was before may have been a warm-up or no leak yet.
        let slope = if pool.z_late >= CERTAIN { pool.late } else { pool.slope.min(pool.late) };
        let error = (2.0 / pool.z.max(2.2)).min(0.9);
        let eta = |slope: f32| {
            let limit = trend.limit.filter(|_| slope > 0.0)?;
            let by_peaks = run.reaches(limit, slope);
            // Younger than a day, it has not shown all its peaks yet.
            let by_others = f64::from((limit - floor - pool.amplitude).max(0.0) / slope);
            let eta = if run.seen() < DAY { by_peaks.min(by_others) } else { by_peaks };
            (eta <= 10.0 * HORIZON).then_some(eta)
        };
        self.slope = slope;
        self.eta = eta(slope);
        self.eta_low = eta(slope.max(pool.slope) * (1.0 + error));
        self.eta_high = eta(slope.min(pool.slope) * (1.0 - error));
    }
}

/// The forecast by the last look, for the present moment.
pub(super) fn forecast(trend: &Trend) -> Forecast {
    let scale = trend.pace.scale();
    let uptime = trend.run.as_ref().map_or(0.0, |run| run.uptime);
    // After a restart of the agent there is none until the hour is full.
    let found = trend.judgement.unwrap_or_else(|| judge(trend));
    let usual = usual_uptime(trend);
    let since = (trend.last - found.at).max(0.0);
    let from_now = |eta: Option<f64>| eta.map(|eta| (eta - since).max(0.0));
    let hints = trend.hold.leak.on || trend.hold.hint.on;
    let eta = from_now(found.eta).filter(|_| hints);
    // A hint is enough where there is no time left to become certain, and no restart to be expected.
    let alone = uptime >= DAY && usual.is_none_or(|usual| uptime > OVERDUE * usual);
    let leaks = trend.hold.leak.on || (alone && eta.is_some_and(|eta| eta <= NO_TIME));
    let (low, high) = (from_now(found.eta_low), from_now(found.eta_high));
    let at_oom = eta.map(|eta| uptime + eta);
    let severity = at_oom.zip(usual).map(|(at_oom, usual)| at_oom / usual.max(1.0));
    let hidden = severity.is_some_and(|severity| severity > 1.0) || usual.is_some_and(|usual| usual < DAY);
    let masked = trend.past.len() >= SEVERAL && hidden && uptime <= 1.5 * trend.past_longest();
    let verdict = match (leaks, found.enough) {
        (true, _) if masked => Verdict::MaskedLeak,
        (true, _) => Verdict::Leak,
        (false, true) => Verdict::Steady,
        (false, false) => Verdict::Insufficient,
    };
    let fast = trend.fast.eta();
    let level = Level::of(leaks, eta, fast);
    Forecast {
        verdict,
        advisory: hints,
        level,
        growth_bytes_per_hour: found.enough.then(|| f64::from(found.slope) * HOUR / scale),
        time_to_oom_seconds: eta.map(|eta| eta * scale),
        time_to_oom_seconds_low: eta.and(low).map(|eta| eta * scale),
        time_to_oom_seconds_high: eta.and(high).map(|eta| eta * scale),
        uptime_seconds: uptime * scale,
        longest_uptime_seconds: trend.longest * scale,
        usual_uptime_seconds: usual.map(|usual| usual * scale),
        uptime_at_oom_seconds: at_oom.map(|uptime| uptime * scale),
        severity,
        builds: builds(trend, scale),
        exhausted_in_seconds: fast.map(|eta| eta * scale),
    }
}

/// The uptime that 19 of 20 incarnations ended before.
fn usual_uptime(trend: &Trend) -> Option<f64> {
    let mut uptimes: Vec<f64> = trend.past.iter().map(|past| f64::from(past.uptime)).collect();
    uptimes.sort_by(f64::total_cmp);
    let index = (uptimes.len() as f64 * 0.95).ceil() as usize;
    uptimes.get(index.saturating_sub(1)).copied()
}

/// The present build against the one before it.
fn builds(trend: &Trend, scale: f64) -> Option<Builds> {
    let run = trend.run.as_ref().filter(|run| run.build != 0)?;
    let build = run.build;
    let before = trend.past.iter().rev().map(|past| past.build).find(|other| *other != 0 && *other != build)?;
    let gain = trend.load.bytes_per_core();
    let current = Summary::of(run.bins(), 0.0, gain, run.build, &mut Scratch::default());
    let mut scratch = Scratch::default();
    let past: Vec<Summary> = trend.past.iter().map(|past| past.unpack(&mut scratch)).collect();
    let of = |build: u16| pool(past.iter().chain(&current).filter(move |past| past.build == build));
    let hourly = |pool: Pool| f64::from(pool.slope) * HOUR / scale;
    Some(Builds { now: hourly(of(build)?), before: hourly(of(before)?), since: None })
}
