//! What the agent would have said, and when first.

use serde::Serialize;

use crate::memory::{
    forecast::{Forecast, Level, Verdict},
    trend::{Pace, Sample, Seen, Trend},
};

/// A series that was replayed.
pub(super) struct Replay {
    /// As of the last sample.
    pub(super) forecast: Forecast,
    /// Unix seconds: the first notice, warning or page; and the first advisory.
    pub(super) first_alert: Option<f64>,
    pub(super) first_advisory: Option<f64>,
    /// Samples that were no newer than the one before.
    pub(super) refused: usize,
}

/// What programs get.
#[derive(Serialize)]
pub(super) struct Report {
    verdict: Verdict,
    first_alert_time: Option<f64>,
    first_advisory_time: Option<f64>,
    growth_bytes_per_hour: Option<f64>,
    time_to_oom_seconds: Option<f64>,
    time_to_oom_seconds_low: Option<f64>,
    time_to_oom_seconds_high: Option<f64>,
    longest_uptime_seconds: f64,
    advisory: bool,
    level: Option<Level>,
    usual_uptime_seconds: Option<f64>,
    uptime_at_oom_seconds: Option<f64>,
    severity: Option<f64>,
    samples_refused: usize,
}

impl Replay {
    /// Replays all samples in their order.
    pub(super) fn of(samples: &[Sample]) -> Self {
        let mut trend = Trend::new(Pace::default());
        let (mut first_alert, mut first_advisory, mut refused) = (None, None, 0);
        for sample in samples {
            match trend.observe(sample) {
                Seen::Refused => refused += 1,
                Seen::Taken => {}
                Seen::Judged => {
                    let forecast = trend.forecast();
                    if forecast.alerts() {
                        first_alert.get_or_insert(sample.time);
                    }
                    if forecast.advisory {
                        first_advisory.get_or_insert(sample.time);
                    }
                }
            }
        }
        Self { forecast: trend.forecast(), first_alert, first_advisory, refused }
    }

    /// For programs.
    pub(super) fn report(&self) -> Report {
        let Forecast {
            verdict,
            advisory,
            level,
            growth_bytes_per_hour,
            time_to_oom_seconds,
            time_to_oom_seconds_low,
            time_to_oom_seconds_high,
            uptime_seconds: _,
            longest_uptime_seconds,
            usual_uptime_seconds,
            uptime_at_oom_seconds,
            severity,
            // A recorded series knows neither builds nor a present.
            builds: _,
            exhausted_in_seconds: _,
        } = self.forecast;
        Report {
            verdict,
            first_alert_time: self.first_alert,
            first_advisory_time: self.first_advisory,
            growth_bytes_per_hour,
            time_to_oom_seconds,
            time_to_oom_seconds_low,
            time_to_oom_seconds_high,
            longest_uptime_seconds,
            advisory,
            level,
            usual_uptime_seconds,
            uptime_at_oom_seconds,
            severity,
            samples_refused: self.refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_under_daily_restarts_is_found_and_reported_in_the_fixed_words() {
        let samples: Vec<Sample> = (0..60 * 24 * 6)
            .map(|minute| {
                let time = 1_700_000_000.0 + f64::from(minute) * 60.0;
                let start = time - f64::from(minute % 1440) * 60.0;
                let noise = f64::from(minute * 7919 % 101) * 1e4;
                let bytes = 2e8 + (time - start) * 1100.0 + noise;
                Sample { time, start, bytes, limit: Some(1e9), cpu: None, pressure: None, build: None }
            })
            .collect();
        let report = serde_json::to_value(Replay::of(&samples).report()).expect("it serialises");
        assert_eq!(report["verdict"], "masked_leak");
        let first = report["first_alert_time"].as_f64().expect("it alerted");
        assert!(first < 1_700_000_000.0 + 5.0 * 86_400.0, "{first}");
        assert!(report["first_advisory_time"].as_f64().expect("before or with it") <= first);
        let growth = report["growth_bytes_per_hour"].as_f64().expect("known");
        assert!((growth / (1100.0 * 3600.0) - 1.0).abs() < 0.05, "{growth}");
        let range = ["time_to_oom_seconds_low", "time_to_oom_seconds", "time_to_oom_seconds_high"];
        let times = range.map(|name| report[name].as_f64().expect("known"));
        assert!(times.is_sorted(), "{times:?}");
    }

    #[test]
    fn too_little_is_insufficient() {
        let one = Sample { time: 1e9, start: 1e9, bytes: 1.0, limit: None, cpu: None, pressure: None, build: None };
        let report = serde_json::to_value(Replay::of(&[one]).report()).expect("it serialises");
        assert_eq!(report["verdict"], "insufficient");
        assert!(report["first_alert_time"].is_null() && report["time_to_oom_seconds"].is_null());
    }
}
