//! Follows the memory of one service: turns measurements into samples for its trend, and the trend's forecast into news.
//! Kept from one agent to the next. Pure: time is part of each measurement.

use std::{borrow::Cow, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    forecast::{Forecast, Level, Verdict},
    sampler::Measured,
    trend::{Pace, Sample, Seen, Trend},
};
use crate::{host::process::Identity, incident::Foretold};

/// Samples after which the trend is written down, if nothing else makes that happen: ten minutes of them.
const UNSAVED: u32 = 10;

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Follower {
    pace: Pace,
    trend: Trend,
    run: Option<Run>,
    /// Boxed: most services have none.
    alert: Option<Box<Alert>>,
    #[serde(default)]
    build: Option<Build>,
    #[serde(skip)]
    last: Option<Last>,
    #[serde(skip)]
    unsaved: u32,
}

/// The present incarnation. Its begin by the wall clock is read once: a clock that is set later must not make it another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Run {
    process: Identity,
    /// Ours is one text for all services.
    boot_id: Cow<'static, str>,
    began: f64,
}

/// The present build, and when it was first seen: a date is what people know a deploy by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Build {
    id: u64,
    /// Begin of its first incarnation, Unix seconds.
    since: f64,
}

/// The last sample.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Last {
    process: Identity,
    at_ns: u64,
    cpu_seconds: Option<f64>,
}

/// What operators were told, and when first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Alert {
    /// When it began.
    since: Timestamp,
    /// How urgent it is now.
    level: Level,
    /// Of what kind.
    verdict: Verdict,
    /// When memory was said to run out, when it began: the estimate, the earliest and the latest.
    runs_out: Option<Timestamp>,
    /// The earliest.
    earliest: Option<Timestamp>,
    /// The latest; `None`: it may be never.
    latest: Option<Timestamp>,
}

/// What came of a measurement.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct News {
    /// There is a new forecast.
    pub(crate) forecast: Option<Forecast>,
    /// Operators have to hear of it: it begins, or is more urgent than before.
    pub(crate) raised: bool,
    /// It is over.
    pub(crate) cleared: bool,
    /// It is time to write the trend down.
    pub(crate) keep: bool,
}

/// Where the clocks stand when a measurement is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clocks {
    /// Begin of the measured incarnation by the wall clock, as that is set now.
    pub(crate) began: Timestamp,
    /// The wall clock.
    pub(crate) now: Timestamp,
    /// Names this boot of the host.
    pub(crate) boot_id: &'static str,
}

impl Follower {
    /// Of a service of which nothing is known.
    pub(crate) fn new(pace: Pace) -> Self {
        Self { pace, trend: Trend::new(pace), run: None, alert: None, build: None, last: None, unsaved: 0 }
    }

    /// Says where in its time it begins; services that are met at once are then written down in turn, not all at once.
    pub(crate) fn staggered(mut self, seed: u64) -> Self {
        self.unsaved = (seed % u64::from(UNSAVED)) as u32;
        self
    }

    /// True when it was made for this pace: another one's numbers mean something else.
    pub(crate) fn keeps(&self, pace: Pace) -> bool {
        self.pace == pace
    }

    /// True when the trend wants a sample of this process: the first of each at once.
    pub(crate) fn is_due(&self, process: Identity, now_ns: u64) -> bool {
        // Half a period of tolerance: measurements come in steps.
        let period = Duration::try_from_secs_f64(self.pace.sample_seconds.max(0.0)).unwrap_or(Duration::MAX);
        let period = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        let since = |last: Last| now_ns.saturating_sub(last.at_ns).saturating_add(period / 20);
        self.last.filter(|last| last.process == process).is_none_or(|last| since(last) >= period)
    }

    /// Takes a whole measurement; one that is not whole tells nothing.
    pub(crate) fn take(&mut self, measured: &Measured, clocks: Clocks) -> News {
        let Some(whole) = measured.whole else { return News::default() };
        let process = measured.process;
        let began = self.began(process, clocks);
        if let Some(id) = whole.build.filter(|id| self.build.is_none_or(|build| build.id != *id)) {
            self.build = Some(Build { id, since: began });
        }
        let since = measured.at_ns.saturating_sub(process.start_ns) as f64 / 1e9;
        let before = self.last.filter(|last| last.process == process);
        let cpu = before.and_then(|before| {
            let seconds = measured.at_ns.checked_sub(before.at_ns)? as f64 / 1e9;
            let used = whole.cpu_seconds? - before.cpu_seconds?;
            (seconds > 0.0 && used >= 0.0).then(|| used / seconds)
        });
        self.last = Some(Last { process, at_ns: measured.at_ns, cpu_seconds: whole.cpu_seconds });
        let seen = self.trend.observe(&Sample {
            time: began + since,
            start: began,
            bytes: measured.bytes as f64,
            limit: Some(whole.ceiling),
            cpu,
            pressure: whole.pressure,
            build: whole.build,
        });
        self.unsaved += 1;
        let mut news = match seen {
            Seen::Refused | Seen::Taken => News::default(),
            Seen::Judged => self.judged(clocks.now),
        };
        news.keep = self.unsaved >= UNSAVED || news.raised || news.cleared;
        if news.keep {
            self.unsaved = 0;
        }
        news
    }

    /// The forecast as of the last sample.
    pub(crate) fn forecast(&self) -> Forecast {
        let mut forecast = self.trend.forecast();
        if let Some(builds) = &mut forecast.builds {
            builds.since = self.build.map(|build| build.since);
        }
        forecast
    }

    /// Likewise, when that was a sample of this incarnation.
    pub(crate) fn forecast_of(&self, process: Option<Identity>) -> Option<Forecast> {
        let same = self.last?.process.matches(process?);
        same.then(|| self.forecast())
    }

    /// What was known, for the record of a death.
    pub(crate) fn foretold(&self) -> Foretold {
        let forecast = self.trend.forecast();
        let alert = self.alert.as_ref();
        Foretold {
            verdict: forecast.verdict.as_str().to_owned(),
            growth_bytes_per_hour: forecast.growth_bytes_per_hour,
            since: alert.map(|alert| alert.since),
            runs_out: alert.and_then(|alert| alert.runs_out),
            earliest: alert.and_then(|alert| alert.earliest),
            latest: alert.and_then(|alert| alert.latest),
        }
    }

    fn began(&mut self, process: Identity, Clocks { began, boot_id, .. }: Clocks) -> f64 {
        if let Some(run) = self.run.as_mut().filter(|run| run.process.matches(process) && run.boot_id == boot_id) {
            run.boot_id = Cow::Borrowed(boot_id);
            return run.began;
        }
        let began = began.as_nanosecond() as f64 / 1e9;
        self.run = Some(Run { process, boot_id: Cow::Borrowed(boot_id), began });
        began
    }

    fn judged(&mut self, now: Timestamp) -> News {
        let forecast = self.forecast();
        let (mut raised, mut cleared) = (false, false);
        match (forecast.level, &mut self.alert) {
            (Some(level), Some(alert)) => {
                raised = level > alert.level;
                alert.level = level;
                alert.verdict = forecast.verdict;
            }
            (Some(level), none) => {
                let after = |seconds: Option<f64>| now.checked_add(Duration::try_from_secs_f64(seconds?).ok()?).ok();
                raised = true;
                *none = Some(Box::new(Alert {
                    since: now,
                    level,
                    verdict: forecast.verdict,
                    runs_out: after(forecast.time_to_oom_seconds.or(forecast.exhausted_in_seconds)),
                    earliest: after(forecast.time_to_oom_seconds_low),
                    latest: after(forecast.time_to_oom_seconds_high),
                }));
            }
            (None, alert) => cleared = alert.take().is_some(),
        }
        News { forecast: Some(forecast), raised, cleared, keep: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::sampler::Whole;

    const MINUTE_NS: u64 = 60_000_000_000;
    const MIB: f64 = 1_048_576.0;

    /// A service that is restarted each day and takes `mib_per_hour` more and more, measured each minute; when what was news.
    fn follow(follower: &mut Follower, days: u64, mib_per_hour: f64) -> Vec<(u64, News)> {
        let epoch = Timestamp::from_second(1_700_000_000).expect("a time");
        let mut news = Vec::new();
        for minute in 0..days * 1440 {
            let (day, uptime) = (minute / 1440, minute % 1440);
            let process = Identity { tgid: 100 + day as u32, start_ns: day * 1440 * MINUTE_NS };
            let at_ns = minute * MINUTE_NS;
            assert!(follower.is_due(process, at_ns));
            let half_before = at_ns.saturating_sub(MINUTE_NS / 2);
            assert_eq!(follower.is_due(process, half_before), uptime == 0, "the first sample of each at once");
            let bytes = (200.0 + mib_per_hour * uptime as f64 / 60.0) * MIB + (minute % 7) as f64 * 1e4;
            let whole = Whole {
                ceiling: 1024.0 * MIB,
                cpu_seconds: Some(minute as f64 * 6.0),
                pressure: Some(0.0),
                build: Some(7 + day / 4),
            };
            let service = "web".into();
            let measured = Measured { service, process, at_ns, bytes: bytes as u64, limit: None, whole: Some(whole) };
            let wall = |ns: u64| epoch + Duration::from_nanos(ns);
            // The wall clock is set forward by an hour on the third day: no incarnation begins by that.
            let step = Duration::from_secs(if day >= 2 { 3600 } else { 0 });
            let clocks = Clocks { began: wall(process.start_ns) + step, now: wall(at_ns) + step, boot_id: "boot" };
            let one = follower.take(&measured, clocks);
            if one.forecast.is_some() || one.keep {
                news.push((minute, one));
            }
        }
        news
    }

    #[test]
    fn a_leak_that_restarts_hide_is_raised_once_and_says_when_memory_runs_out() {
        let mut follower = Follower::new(Pace::default());
        let news = follow(&mut follower, 8, 4.0);
        let raised: Vec<_> = news.iter().filter(|(_, news)| news.raised).collect();
        assert!(!raised.is_empty(), "{:?}", follower.forecast());
        let alert = follower.alert.as_ref().expect("an alert");
        assert_eq!(alert.verdict, Verdict::MaskedLeak);
        let (minute, _) = raised[0];
        let told = alert.runs_out.expect("an estimate").duration_since(alert.since).as_secs_f64() / 3600.0;
        // 824 MiB of room at 4 MiB an hour, less what the incarnation has taken by then.
        let left = 206.0 - (minute % 1440) as f64 / 60.0;
        assert!((0.7 * left..=1.15 * left).contains(&told), "{told} against {left}");
        assert!(news.iter().filter(|(_, news)| news.keep).count() >= 8 * 1440 / 11, "it is written down now and then");
        // The second build came on the fifth day, after the clock was set.
        let builds = follower.forecast().builds.expect("there are two");
        assert_eq!(builds.since, Some(1_700_000_000.0 + 4.0 * 86_400.0 + 3600.0));
    }

    #[test]
    fn what_is_written_down_goes_on_where_it_was() {
        let mut follower = Follower::new(Pace::default());
        follow(&mut follower, 4, 4.0);
        let text = serde_json::to_string(&follower).expect("written");
        let mut other: Follower = serde_json::from_str(&text).expect("read");
        assert!(other.keeps(Pace::default()) && !other.keeps(Pace { sample_seconds: 0.1 }));
        assert_eq!(other.run, follower.run);
        assert_eq!(other.forecast().longest_uptime_seconds, follower.forecast().longest_uptime_seconds);
        follow(&mut other, 1, 4.0);
    }

    #[test]
    fn what_is_steady_is_not_raised_and_a_partial_measurement_is_no_sample() {
        let mut follower = Follower::new(Pace::default());
        assert!(follow(&mut follower, 4, 0.0).iter().all(|(_, news)| !news.raised && !news.cleared));
        assert_eq!(follower.alert, None);
        let process = Identity { tgid: 1, start_ns: 0 };
        let partial = Measured { service: "web".into(), process, at_ns: 1, bytes: 1, limit: None, whole: None };
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(follower.take(&partial, Clocks { began: now, now, boot_id: "" }), News::default());
    }

    #[test]
    fn a_period_that_no_time_holds_is_never_due_again() {
        let pace = Pace { sample_seconds: 1e300 };
        let mut follower = Follower::new(pace);
        let process = Identity { tgid: 1, start_ns: 1 };
        assert!(follower.is_due(process, 1), "the first is");
        follower.last = Some(Last { process, at_ns: 1, cpu_seconds: None });
        assert!(!follower.is_due(process, u64::MAX / 2));
    }
}
