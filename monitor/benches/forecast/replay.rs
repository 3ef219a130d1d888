//! One service through the forecaster, as the agent would have seen it.

use monitor::memory::{
    forecast::Level,
    trend::{Pace, Sample, Seen, Trend},
};

use rustix::time::{ClockId, clock_gettime};

use crate::{
    first, rules,
    service::{Family, GAP, Schedule, live},
};

const DAY: f64 = 86_400.0;
/// A Monday.
const EPOCH: f64 = 1_699_833_600.0;
const LIMIT: f64 = 2_147_483_648.0;

/// What became of it. Days.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// When it ran out of memory.
    pub(crate) oom: Option<f64>,
    /// First times.
    pub(crate) alert: Option<f64>,
    pub(crate) advisory: Option<f64>,
    pub(crate) warned: Option<f64>,
    /// Days that the forecast gave it one day before it ran out.
    pub(crate) eta: Option<f64>,
    /// First alerts of the other rules: the first algorithm, predict_linear 1 h and 6 h, growth.
    pub(crate) others: [Option<f64>; 4],
    /// Seconds of CPU for the whole replay, and for an hourly verdict, of which 99 of 100 took no longer.
    pub(crate) seconds: f64,
    pub(crate) verdict_seconds: f64,
}

impl Outcome {
    /// Whether `first` came before memory ran out.
    pub(crate) fn in_time(&self, first: Option<f64>) -> bool {
        first.is_some_and(|first| self.oom.is_none_or(|oom| first < oom))
    }

    pub(crate) fn before_gap(&self, first: Option<f64>) -> bool {
        self.in_time(first) && first.is_some_and(|first| first < GAP)
    }
}

/// Seconds that this thread has run: others use the machine too.
fn cpu() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

/// Lives and replays one service. `load`: whether its CPU is known.
pub(crate) fn replay(family: &Family, schedule: Schedule, seed: u64, load: bool) -> Outcome {
    let (minutes, out) = live(family, schedule, seed);
    let mut outcome = Outcome { oom: minutes.last().filter(|_| out).map(|last| last.time), ..Outcome::default() };
    let samples: Vec<Sample> = minutes
        .iter()
        .map(|minute| Sample {
            time: EPOCH + minute.time * DAY,
            start: EPOCH + minute.start * DAY,
            bytes: (minute.memory * LIMIT).round(),
            limit: Some(LIMIT),
            cpu: load.then_some(minute.cpu),
            pressure: None,
            build: None,
        })
        .collect();
    let mut trend = Trend::new(Pace::default());
    let mut verdicts = Vec::new();
    let begin = cpu();
    for (minute, sample) in minutes.iter().zip(&samples) {
        // Hours of uptime end with a verdict; a look at the clock at each minute would take longer than most minutes do.
        let verdict_due = ((sample.time - sample.start) / 60.0).round() % 60.0 == 0.0;
        let before = if verdict_due { cpu() } else { 0.0 };
        if trend.observe(sample) != Seen::Judged {
            continue;
        }
        let forecast = trend.forecast();
        if verdict_due {
            verdicts.push(cpu() - before);
        }
        let first = |slot: &mut Option<f64>, yes: bool| {
            if yes && slot.is_none() {
                *slot = Some(minute.time);
            }
        };
        first(&mut outcome.alert, forecast.alerts());
        first(&mut outcome.advisory, forecast.advisory);
        first(&mut outcome.warned, forecast.level >= Some(Level::Warn));
        if outcome.oom.is_some_and(|oom| minute.time <= oom - 1.0) {
            outcome.eta = forecast.time_to_oom_seconds.map(|seconds| seconds / DAY);
        }
    }
    outcome.seconds = cpu() - begin;
    verdicts.sort_by(f64::total_cmp);
    outcome.verdict_seconds = verdicts.get(verdicts.len() * 99 / 100).copied().unwrap_or(0.0);
    outcome.others = [
        first::alert(&minutes),
        rules::predict_linear(&minutes, 60, 240.0),
        rules::predict_linear(&minutes, 360, 1440.0),
        rules::growth(&minutes),
    ];
    outcome
}
