//! Simulated services: 21 days of memory, minute by minute, healthy and leaking.
//!
//! Nothing here knows the forecaster. All is in shares of the limit and in days; each draw is from a range that is written
//! beside it.

use crate::random::{Noise, Random};

/// Days of a run, and the day after which nothing is deployed any more.
pub(crate) const DAYS: f64 = 21.0;
pub(crate) const GAP: f64 = 10.0;
const MINUTE: f64 = 1.0 / 1440.0;
const HOUR: f64 = 1.0 / 24.0;

/// What a service's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Fills up exponentially: 5 to 25 % in 1 to 6 hours.
    WarmUp,
    /// A cache that grows ever more slowly and is full at 10 to 35 % after 1 to 14 days.
    Logarithm,
    /// Follows a load with days and weeks: 5 to 15 %.
    Load,
    /// A collector's teeth: 5 to 20 % high, half an hour to 6 hours long.
    Teeth,
    /// One step up of 5 to 20 %, at any time, for good.
    Step,
    /// Two to six a day, 5 to 25 % high, 5 to 60 minutes long.
    Bursts,
    /// A cache that fills exponentially, as the kernel's do: 10 to 30 % in 6 to 18 hours.
    SlowCache,
    /// A heap that is resized by an eighth as traffic grows by 1 to 3 % a day.
    Traffic,
    /// A job each night: 10 to 30 % for 1 to 3 hours.
    Nightly,
    /// More workers in office hours: 5 to 15 %.
    Office,
    /// The leak itself: the room above the base is filled in 3 to 9 days.
    Leak(Pattern),
}

/// How a leak goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    Linear,
    /// As fast as requests come.
    Requests,
    /// In chunks of 1 to 3 %.
    Chunks,
    /// Begins on some day from 3 to 12, for all incarnations from then on.
    LateOnset,
    /// Begins after 4 to 10 hours of each incarnation's uptime.
    LateInUptime,
    /// Only under what comes on weekdays, by day.
    Weekdays,
}

/// A kind of service.
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) parts: &'static [Part],
}

use Part::{Bursts, Leak, Load, Logarithm, Nightly, Office, SlowCache, Step, Teeth, Traffic, WarmUp};
use Pattern::{Chunks, LateInUptime, LateOnset, Linear, Requests, Weekdays};

const fn family(name: &'static str, parts: &'static [Part]) -> Family {
    Family { name, parts }
}

/// The first eight are the ones that the published figures of the first algorithm are for.
pub(crate) const HEALTHY: [Family; 12] = [
    family("flat", &[]),
    family("warm-up", &[WarmUp]),
    family("logarithmic cache", &[Logarithm]),
    family("load", &[Load]),
    family("collector", &[Teeth]),
    family("step", &[Step]),
    family("bursts", &[Bursts]),
    family("all of these", &[WarmUp, Logarithm, Load, Teeth, Step, Bursts]),
    family("slow cache", &[SlowCache]),
    family("growing traffic", &[Load, Traffic]),
    family("nightly job", &[Nightly]),
    family("office hours", &[Office, WarmUp]),
];

/// The same.
pub(crate) const LEAKING: [Family; 12] = [
    family("linear", &[Leak(Linear)]),
    family("with warm-up", &[WarmUp, Leak(Linear)]),
    family("with load", &[Load, Leak(Linear)]),
    family("with collector", &[Teeth, Leak(Linear)]),
    family("by requests", &[Load, Leak(Requests)]),
    family("in chunks", &[Leak(Chunks)]),
    family("late onset", &[Leak(LateOnset)]),
    family("all of these", &[WarmUp, Load, Teeth, Bursts, Leak(Linear)]),
    family("late in uptime", &[Leak(LateInUptime)]),
    family("on weekdays", &[Load, Leak(Weekdays)]),
    family("with bursts", &[Bursts, Leak(Linear)]),
    family("with nightly job", &[Nightly, WarmUp, Leak(Linear)]),
];

/// When a service is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Schedule {
    Daily,
    EightHours,
    Never,
}

impl Schedule {
    pub(crate) const ALL: [Self; 3] = [Self::Daily, Self::EightHours, Self::Never];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Daily => "daily",
            Self::EightHours => "every 8 h",
            Self::Never => "none",
        }
    }

    /// Days between restarts.
    fn every(self) -> f64 {
        match self {
            Self::Daily => 1.0,
            Self::EightHours => 1.0 / 3.0,
            Self::Never => f64::INFINITY,
        }
    }
}

/// A minute of a service's life. Days and shares of the limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Minute {
    pub(crate) time: f64,
    pub(crate) start: f64,
    pub(crate) memory: f64,
    pub(crate) cpu: f64,
}

/// The draws of one service.
struct Draws {
    base: f64,
    warm_up: (f64, f64),
    logarithm: (f64, f64, f64),
    load: f64,
    swing: f64,
    phase: f64,
    weekend: f64,
    tooth: (f64, f64),
    step: (f64, f64),
    bursts: (f64, f64),
    slow_cache: (f64, f64),
    traffic: f64,
    nightly: (f64, f64, f64),
    office: f64,
    rate: f64,
    chunk: f64,
    onset: f64,
    onset_uptime: f64,
}

impl Draws {
    fn new(family: &Family, random: &mut Random) -> Self {
        // Where many come together, each is half as large.
        let size = if family.parts.len() > 3 { 0.5 } else { 1.0 };
        let base = random.between(0.15, 0.35);
        let full = random.between(0.10, 0.35) * size;
        let (tau, full_after) = (random.magnitude(0.25 * HOUR, 6.0 * HOUR), random.between(1.0, 14.0));
        Self {
            base,
            warm_up: (random.between(0.05, 0.25) * size, random.between(1.0, 6.0) * HOUR),
            logarithm: (full / (1.0 + full_after / tau).ln(), tau, full),
            load: random.between(0.05, 0.15) * size,
            swing: random.between(0.4, 0.8),
            phase: random.between(0.0, 1.0),
            weekend: random.between(0.5, 0.9),
            tooth: (random.between(0.05, 0.20) * size, random.magnitude(0.5 * HOUR, 6.0 * HOUR)),
            step: (random.between(0.05, 0.20) * size, random.between(0.0, DAYS)),
            bursts: (random.between(2.0, 6.0), random.between(0.05, 0.25) * size),
            slow_cache: (random.between(0.10, 0.30), random.between(6.0, 18.0) * HOUR),
            traffic: random.between(0.01, 0.03),
            nightly: (random.between(0.10, 0.30), random.between(1.0, 3.0) * HOUR, random.between(0.0, 1.0)),
            office: random.between(0.05, 0.15),
            rate: (1.0 - base) / random.between(3.0, 9.0),
            chunk: random.between(0.01, 0.03),
            onset: random.between(3.0, 12.0),
            onset_uptime: random.between(4.0, 10.0) * HOUR,
        }
    }

    /// Requests now, 1 on average over a weekday.
    fn requests(&self, time: f64) -> f64 {
        let day = 1.0 + self.swing * (std::f64::consts::TAU * (time + self.phase)).sin();
        day * if weekday(time) { 1.0 } else { self.weekend }
    }
}

/// A run begins on a Monday.
fn weekday(time: f64) -> bool {
    time.rem_euclid(7.0) < 5.0
}

/// All minutes of a service until it runs out of memory or the run is over. `true` in the end: it ran out.
pub(crate) fn live(family: &Family, schedule: Schedule, seed: u64) -> (Vec<Minute>, bool) {
    let mut random = Random::new(seed);
    let draws = Draws::new(family, &mut random);
    let mut noise = Noise::new(random.between(0.8, 0.98), random.between(0.002, 0.010));
    let mut cpu_noise = Noise::new(0.8, 0.05);
    let restart_phase = random.between(0.0, 1.0);
    let has = |part| family.parts.contains(&part);
    let loaded = has(Load);

    let mut minutes = Vec::with_capacity((DAYS / MINUTE) as usize);
    let mut start = 0.0;
    let mut next_restart = next(schedule, restart_phase, 0.0, &mut random);
    let (mut leaked, mut chunk_left) = (0.0, 0.0);
    let (mut burst_until, mut next_burst) = (0.0, random.wait(1.0 / draws.bursts.0));
    let mut vary = random.between(0.9, 1.1);
    for index in 0..(DAYS / MINUTE) as usize {
        let time = index as f64 * MINUTE;
        if time >= next_restart {
            start = time;
            next_restart = next(schedule, restart_phase, time, &mut random);
            (leaked, chunk_left) = (0.0, 0.0);
            vary = random.between(0.9, 1.1);
        }
        let uptime = time - start;
        let traffic = 1.0 + draws.traffic * time;
        let requests = if loaded { draws.requests(time) } else { 1.0 };
        let mut cpu = (requests + cpu_noise.next(&mut random)).max(0.01);
        let mut memory = draws.base;
        for part in family.parts {
            memory += match part {
                WarmUp => vary * draws.warm_up.0 * (1.0 - (-uptime / draws.warm_up.1).exp()),
                Logarithm => {
                    let (gain, tau, full) = draws.logarithm;
                    (vary * gain * (1.0 + uptime / tau).ln()).min(full)
                }
                Load => draws.load * requests,
                Teeth => draws.tooth.0 * (uptime / (vary * draws.tooth.1)).fract(),
                Step => {
                    if time >= draws.step.1 {
                        draws.step.0
                    } else {
                        0.0
                    }
                }
                Bursts => {
                    if time >= next_burst {
                        burst_until = time + random.between(5.0, 60.0) * MINUTE;
                        next_burst = burst_until + random.wait(1.0 / draws.bursts.0);
                    }
                    if time < burst_until { draws.bursts.1 } else { 0.0 }
                }
                SlowCache => vary * draws.slow_cache.0 * (1.0 - (-uptime / draws.slow_cache.1).exp()),
                Traffic => {
                    cpu *= traffic;
                    // An eighth of a heap of a fifth of the limit at a time.
                    0.2 * 0.125 * ((traffic - 1.0) / 0.125).floor()
                }
                Nightly => {
                    let (height, length, phase) = draws.nightly;
                    let on = (time + phase).fract() < length;
                    cpu += if on { 1.0 } else { 0.0 };
                    if on { height } else { 0.0 }
                }
                Office => {
                    let on = weekday(time) && (8.0 * HOUR..18.0 * HOUR).contains(&time.fract());
                    cpu += if on { 1.0 } else { 0.0 };
                    if on { draws.office } else { 0.0 }
                }
                Leak(pattern) => {
                    let amount = draws.rate * MINUTE;
                    leaked += match pattern {
                        Linear => amount,
                        Requests => amount * requests,
                        Chunks => {
                            chunk_left -= amount;
                            if chunk_left < 0.0 {
                                chunk_left += random.wait(draws.chunk);
                                // What is waited for comes at once; the first is on its way.
                                draws.chunk
                            } else {
                                0.0
                            }
                        }
                        LateOnset => {
                            if time >= draws.onset {
                                amount
                            } else {
                                0.0
                            }
                        }
                        LateInUptime => {
                            if uptime >= draws.onset_uptime {
                                amount
                            } else {
                                0.0
                            }
                        }
                        Weekdays => {
                            let by_day = (6.0 * HOUR..22.0 * HOUR).contains(&time.fract());
                            if weekday(time) && by_day { amount * 1.5 } else { 0.0 }
                        }
                    };
                    leaked
                }
            };
        }
        memory = (memory + noise.next(&mut random)).max(0.001);
        minutes.push(Minute { time, start, memory: memory.min(1.0), cpu });
        if memory >= 1.0 {
            return (minutes, true);
        }
    }
    (minutes, false)
}

/// The next restart after `time`: by the clock, give or take half an hour, until the gap.
fn next(schedule: Schedule, phase: f64, time: f64, random: &mut Random) -> f64 {
    let every = schedule.every();
    if !every.is_finite() {
        return f64::INFINITY;
    }
    let offset = phase * every;
    let on_time = ((time - offset) / every + 0.1).floor() * every + every + offset;
    let at = on_time + random.between(-0.5, 0.5) * HOUR;
    if at > GAP { f64::INFINITY } else { at }
}
