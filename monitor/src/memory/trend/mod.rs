//! How the memory of one service grows with uptime, over its incarnations. Pure: time is part of each sample.
//!
//! ```text
//! samples ──▶ run.rs: the present incarnation in bins by uptime ──ends──▶ past.rs: 12 entries of past ones
//!                        │                                                     │
//!             load.rs: what follows the load                                   │
//!                        └──────────▶ pool.rs, judge.rs: hourly verdict ◀──────┘
//!             fast.rs: the last minutes ──▶ exhaustion within a quarter of an hour
//! ```
//!
//! A leak that restarts hide is a sawtooth by the clock, and every rule on slopes by the clock misses it. By uptime it is
//! the same line again and again, so the incarnations are pooled: only values of the same incarnation are compared, and
//! the comparisons of all are added up.

mod fast;
mod judge;
mod load;
mod past;
mod pool;
mod run;
mod shape;
mod stats;
mod summary;

use serde::{Deserialize, Deserializer, Serialize};

use self::{
    fast::Fast,
    judge::{Hold, Judgement},
    load::Load,
    past::Past,
    run::{MINUTE, Run},
    summary::{Scratch, Summary},
};
use super::forecast::Forecast;

/// Entries of past incarnations; those that are alike share one.
const PAST: usize = 12;
/// Incarnations that ended sooner are not remembered: they grew up, and nothing else. Seconds.
const SHORTEST: f64 = 7200.0;
/// Starts that differ by less are the same one, rounded: seconds.
const SAME_START: f64 = 1.0;
/// No clock is farther from 1970 than this, and uptimes below it fit a float: seconds, 30 million years.
const FARTHEST: f64 = 1e15;
/// So many samples in a row from before the last one are a clock that was put back, and no stray.
const PUT_BACK: u8 = 3;
/// A hole in the samples longer than this ends what is known of the incarnation: seconds.
const HOLE: f64 = 3.0 * 86_400.0;

/// How fast time goes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Seconds between two samples, as the trend would like them: 60. All its durations are made for that and scale with
    /// it, so that a test can let a month go by in an hour.
    pub sample_seconds: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { sample_seconds: MINUTE }
    }
}

impl Pace {
    /// Real seconds in one of the trend's own; 1 for what is no length of time.
    fn scale(self) -> f64 {
        let scale = self.sample_seconds / MINUTE;
        if scale.is_finite() && scale > 0.0 { scale } else { 1.0 }
    }
}

/// What a service used at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// When, Unix seconds.
    pub time: f64,
    /// When this incarnation began, Unix seconds. Another value means another incarnation.
    pub start: f64,
    /// Memory that cannot be reclaimed, bytes.
    pub bytes: f64,
    /// Its limit, bytes; `None`: there is none, and so no time at which it is reached.
    pub limit: Option<f64>,
    /// Load: cores in use.
    pub cpu: Option<f64>,
    /// Share of time in which all its processes waited for memory, of 1 (`full avg10` of `memory.pressure`).
    pub pressure: Option<f64>,
    /// Any number that is the same for the same build.
    pub build: Option<u64>,
}

/// What became of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was no measurement (not a number, below nothing), or no newer than the last.
    Refused,
    /// It was taken.
    Taken,
    /// It was taken, and there is news: the hourly verdict was made, or memory is exhausted within minutes.
    Judged,
}

/// Memory of one service over its incarnations: less than 2 KiB, whatever comes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    pace: Pace,
    run: Option<Run>,
    #[serde(deserialize_with = "bounded::<_, _, PAST>")]
    past: Vec<Past>,
    /// Of all incarnations, seconds.
    longest: f64,
    load: Load,
    fast: Fast,
    limit: Option<f32>,
    /// Time of the last sample, the clock's changes taken out.
    last: f64,
    /// To add to the clock.
    shift: f64,
    /// Samples in a row from before the last.
    stale: u8,
    stale_time: f64,
    hold: Hold,
    #[serde(skip)]
    judgement: Option<Judgement>,
}

impl Trend {
    /// Of a service that nothing is known of.
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            run: None,
            past: Vec::new(),
            longest: 0.0,
            load: Load::default(),
            fast: Fast::default(),
            limit: None,
            // Before all times, and a number in JSON, which infinity is not.
            last: -1e300,
            shift: 0.0,
            stale: 0,
            stale_time: 0.0,
            hold: Hold::default(),
            judgement: None,
        }
    }

    /// Takes a sample. Samples come in the order of time, one for each [`Pace::sample_seconds`] or so.
    pub fn observe(&mut self, sample: &Sample) -> Seen {
        let scale = self.pace.scale();
        let Sample { time, start, bytes, limit, cpu, pressure, build } = *sample;
        let (clock, start) = (time / scale, start / scale);
        let usable = |value: &f64| (0.0..1e30).contains(value);
        if !(clock.abs() < FARTHEST && start.abs() < FARTHEST && usable(&bytes)) {
            return Seen::Refused;
        }
        let same = self.run.as_ref().is_some_and(|run| (run.start - start).abs() < SAME_START / scale.min(1.0));
        let Some(time) = self.settle(clock, same) else { return Seen::Refused };
        let bytes = bytes as f32;
        self.limit = limit.filter(|limit| usable(limit) && *limit > 0.0).map(|limit| limit as f32);
        let cpu = cpu.filter(usable).map(|cpu| cpu as f32);
        let hole = time - self.last > HOLE;
        self.last = time;

        let uptime = (time - start).max(0.0);
        // 16 bits of it will do to tell it from the one before; 0 stands for none.
        let build = build.map_or(0, |build| ((build ^ (build >> 16) ^ (build >> 32) ^ (build >> 48)) as u16).max(1));
        if !same {
            self.end_run();
            self.fast = Fast::default();
        }
        if hole {
            // What was seen before says nothing of what is seen now, and would leave no room for it.
            self.run = None;
        }
        let run = self.run.get_or_insert_with(|| Run::new(start, uptime, build));
        if build != 0 {
            run.build = build;
        }
        let hour = run.add(uptime.max(run.uptime), bytes, cpu);
        self.longest = self.longest.max(run.uptime);
        if hour && let Some((before, after)) = run.last_hours() {
            self.load.add(before, after);
        }
        self.fast.add(time, bytes, self.limit, pressure.filter(usable), || run.peak_before(fast::SPAN));
        if hour {
            self.judge();
        }
        if hour || self.fast.eta().is_some() { Seen::Judged } else { Seen::Taken }
    }

    /// The forecast as of the last sample.
    pub fn forecast(&self) -> Forecast {
        judge::forecast(self)
    }

    /// Bytes that it takes in memory, all told.
    pub fn size(&self) -> usize {
        size_of::<Self>()
            + self.past.capacity() * size_of::<Past>()
            + self.run.as_ref().map_or(0, Run::heap)
            + self.fast.heap()
    }

    /// Of past incarnations, seconds.
    fn past_longest(&self) -> f64 {
        self.past.iter().map(|past| f64::from(past.uptime)).fold(0.0, f64::max)
    }

    /// The time of a sample with the clock's changes taken out; `None`: it is no newer than the last.
    fn settle(&mut self, clock: f64, same: bool) -> Option<f64> {
        if !same {
            // The start comes from the same clock.
            if clock <= self.last - self.shift && self.stale(clock) {
                return None;
            }
            self.shift = 0.0;
            if clock <= self.last {
                self.last = clock - MINUTE;
            }
        } else if clock + self.shift <= self.last {
            if self.stale(clock) {
                return None;
            }
            self.shift = self.last + MINUTE - clock;
        }
        self.stale = 0;
        Some(clock + self.shift)
    }

    /// Counts a sample from before the last; true until there were so many that the clock must have been put back.
    fn stale(&mut self, clock: f64) -> bool {
        self.stale = if self.stale > 0 && clock <= self.stale_time { 1 } else { self.stale + 1 };
        self.stale_time = clock;
        self.stale < PUT_BACK
    }

    fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        if run.seen() < SHORTEST {
            return;
        }
        let mut scratch = Scratch::default();
        let gain = self.load.bytes_per_core();
        if let Some(summary) = Summary::of(run.bins(), 0.0, gain, run.build, &mut scratch) {
            if self.past.len() >= PAST {
                past::make_room(&mut self.past, &mut scratch);
            }
            make_place::<_, PAST>(&mut self.past);
            self.past.push(Past::new(&summary, run.uptime as f32));
        }
    }

    fn judge(&mut self) {
        let judgement = judge::judge(self);
        self.hold.add(&judgement);
        self.judgement = Some(judgement);
    }
}

/// Reads a list that is never longer than `N`, into memory that is never more than that.
fn bounded<'de, D, T, const N: usize>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let mut list = Vec::<T>::deserialize(from)?;
    list.truncate(N);
    list.shrink_to_fit();
    Ok(list)
}

/// Places that a list grows by.
const PLACES: usize = 8;

/// Has place for one more in a list of at most `N`. A list that grows by itself doubles: ten thousand services would hold twice
/// what they need, and before that what they will not need for weeks.
fn make_place<T, const N: usize>(list: &mut Vec<T>) {
    if list.len() == list.capacity() {
        list.reserve_exact(N.saturating_sub(list.len()).clamp(1, PLACES));
    }
}

#[cfg(test)]
mod tests;
